"""What a scoring task asks of Spark's executors, and what it was granted: GPUs by address. Driver and workers.

Spark grants addresses and does nothing else: it does not set CUDA_VISIBLE_DEVICES. So a worker asks for its task's
address and takes that device. Under a local master there is no granting (its settings would hang the first job).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

import pyarrow as pa
from pyspark import SparkContext, TaskContext
from pyspark.resource import ResourceProfile, ResourceProfileBuilder, TaskResourceRequests
from pyspark.sql import SparkSession

from gesr_core.errors import ConfigurationError, GesrError
from gesr_core.runtime.device import WorkerDevice, report_device

GPUS_PER_EXECUTOR: Final = "spark.executor.resource.gpu.amount"


class OnDevice(Protocol):
    """What maps batches on the device that `gpu` names (an address that Spark granted; None: it granted none)."""

    def __call__(self, batches: Iterator[pa.RecordBatch], *, gpu: str | None = None) -> Iterator[pa.RecordBatch]:
        """Map the batches of a partition."""


@dataclass(frozen=True)
class OnGrantedGpu:
    """Does some work on the GPU that Spark granted to the task that it runs in."""

    work: OnDevice

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Map the batches of a partition."""
        return self.work(iter(batches), gpu=granted_gpu())


def granted_gpu() -> str | None:
    """Return the address of the GPU that this task was granted, None where none was."""
    context = TaskContext.get()
    resources = context.resources() if context else {}
    return resources["gpu"].addresses[0] if "gpu" in resources else None


def gpu_profile(spark: SparkSession, *, wanted: str, workers_per_gpu: int) -> ResourceProfile | None:
    """Return what a scoring task asks for: a GPU, or its share of one; None where it asks for nothing.

    It asks where executors have GPUs, that is where `spark.executor.resource.gpu.amount` is set. Other stages then run
    on all cores, and scoring on as many tasks as there are shares of GPUs.
    """
    context = spark.sparkContext
    if wanted == "cpu" or _is_local(context):
        return None
    if int(context.getConf().get(GPUS_PER_EXECUTOR, "0")) == 0:
        return None
    cores = int(context.getConf().get("spark.task.cpus", "1"))
    share = TaskResourceRequests().cpus(cores).resource("gpu", 1 / workers_per_gpu)
    return ResourceProfileBuilder().require(share).build


def await_executor(spark: SparkSession, *, wait_s: float) -> None:
    """Wait until an executor has come; under a local master there is one.

    Raises:
        GesrError: none came within `wait_s`; Spark itself would wait for ever.
    """
    context = spark.sparkContext
    if _is_local(context):
        return
    with ThreadPoolExecutor(1) as thread:
        # A job, because under dynamic allocation executors come only when there is something to do.
        running = thread.submit(spark.range(0, 1, 1, 1).count)
        try:
            running.result(timeout=wait_s)
        except FutureTimeoutError:
            # The driver is in the list too.
            if len(context._jsc.sc().statusTracker().getExecutorInfos()) > 1:
                running.result()
                return
            context.cancelAllJobs()
            gpus = context.getConf().get(GPUS_PER_EXECUTOR, "0")
            raise GesrError(
                f"no executor came within {wait_s:g} s (scoring.executor_wait_s), and Spark would wait for ever; "
                f"each is to have {gpus} GPUs ({GPUS_PER_EXECUTOR}): has any worker as many?"
            ) from None


def probe_worker(spark: SparkSession, *, wanted: str, profile: ResourceProfile | None = None) -> WorkerDevice:
    """Ask a worker, not the driver, which device it has: on a cluster the GPUs are the executors'.

    Raises:
        ConfigurationError: the worker has no such device.
    """
    # One partition: on a cluster each one more would start a worker of its own.
    one_row = spark.range(0, 1, 1, 1)
    report = OnGrantedGpu(partial(report_device, wanted=wanted))
    [row] = one_row.mapInArrow(report, "device string, free_bytes bigint, error string", profile=profile).collect()
    if row["error"]:
        raise ConfigurationError(row["error"])
    return WorkerDevice(row["device"], row["free_bytes"])


def _is_local(context: SparkContext) -> bool:
    """Say whether driver and executor are one process, where Spark grants nothing."""
    return str(context.master).split("[")[0] == "local"
