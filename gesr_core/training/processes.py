"""Several processes that train one model, data-parallel: who takes which requests, and how gradients become one.

Every process makes the same plan of batches and takes its share of each; the loss of a share is a sum divided by what
the whole batch's is divided by, so that gradients add up to those of one process. Runs in a training process; no JVM
(`trainer.py` starts them).
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gesr_core.config import TrainingConfig
from gesr_core.errors import ConfigurationError, GesrError
from gesr_core.runtime.device import choose_device
from gesr_core.training.data import Batch

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

# The others wait while the first validates: longer than the half hour that gloo, and the ten minutes that nccl, allow.
_PATIENCE: Final = dt.timedelta(hours=12)
_TASK_GPUS: Final = "spark.task.resource.gpu.amount"


@dataclass(frozen=True)
class Processes:
    """This process (`rank`) among `count`; with one, every function does nothing."""

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process validates, logs and saves."""
        return self.rank == 0

    def share(self, batch: Batch) -> Batch:
        """Return this process's requests of a batch: every count-th, possibly none."""
        return batch if self.count == 1 else batch.take(torch.arange(len(batch.labels_BNS))[self.rank :: self.count])

    def add_up(self, parameters: Sequence[nn.Parameter], loss: Tensor | None) -> float:
        """Give every process the sum of the processes' gradients, and return the sum of their losses.

        A process whose share is empty has no loss. A parameter without a gradient anywhere is left without one, as in a
        single process: the optimizer skips it.
        """
        own_loss = torch.zeros((), device=self.device) if loss is None else loss.detach()
        if self.count == 1:
            return own_loss.item()
        flags = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32, device=self.device)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        # One buffer, one message: a step waits for the network once.
        buffer = torch.cat([*(g.flatten() for g in gradients), flags, own_loss.reshape(1)])
        dist.all_reduce(buffer)
        *summed, has_gradient, total = buffer.split([*(g.numel() for g in gradients), len(flags), 1])
        for parameter, gradient, used in zip(parameters, summed, has_gradient.tolist(), strict=True):
            parameter.grad = gradient.view_as(parameter) if used else None
        return total.item()

    def from_first(self, value: float) -> float:
        """Return the first process's value everywhere."""
        if self.count == 1:
            return value
        carrier = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.broadcast(carrier, src=0)
        return carrier.item()

    def require_same(self, value: float, *, what: str) -> None:
        """Make sure that the processes are at one.

        Raises:
            GesrError: this process's value is another than the first one's.
        """
        if (first := self.from_first(value)) != value:
            raise GesrError(
                f"{what} is {value:g} for training process {self.rank} and {first:g} for the first: "
                "storage.checkpoints must be a folder that all hosts share"
            )


def choose_training_device(training: TrainingConfig, spark: SparkSession | None) -> torch.device:
    """Return the kind of device that training runs on, here or in Spark's executors.

    Raises:
        ConfigurationError: a GPU is asked for and not there, too few of them are, or several processes have no session.
    """
    if training.processes > 1 and spark is None:
        raise ConfigurationError(
            f"training.processes is {training.processes}, which takes a Spark session to start them: "
            "use jobs/train.py, or set training.processes to 1"
        )
    if training.processes == 1 or spark is None or _is_local(spark):
        device = choose_device(training.device, setting="training.device")
        if device.type == "cuda" and training.processes > torch.cuda.device_count():
            raise ConfigurationError(
                f"training.processes is {training.processes}, one GPU each, but torch sees {torch.cuda.device_count()} "
                "here: set it to that, or training.device to cpu"
            )
        return device
    has_gpus = float(str(spark.conf.get(_TASK_GPUS, "0"))) >= 1
    if training.device == "cuda" and not has_gpus:
        raise ConfigurationError(
            f"training.device is cuda, but {_TASK_GPUS} is not set: set it to 1, or the device to cpu"
        )
    return torch.device("cuda" if has_gpus and training.device != "cpu" else "cpu")


def run_in_processes(
    spark: SparkSession, target: Callable[..., None], *arguments: Any, training: TrainingConfig
) -> None:
    """Run `target` in several processes at once: on this machine under a local master, else as tasks of one Spark job.

    Raises:
        RuntimeError: TorchDistributor's, with the last lines of a process that failed.
    """
    # Only here: a training process needs no Spark.
    from pyspark.ml.torch.distributor import TorchDistributor

    local = _is_local(spark)
    # Locally each process takes its GPU by its rank: TorchDistributor wants the driver's GPUs declared to Spark, and no
    # local master declares any.
    use_gpu = not local and choose_training_device(training, spark).type == "cuda"
    TorchDistributor(num_processes=training.processes, local_mode=local, use_gpu=use_gpu).run(target, *arguments)


def _is_local(spark: SparkSession) -> bool:
    return str(spark.sparkContext.master).split("[")[0] == "local"


ALONE: Final = Processes(rank=0, count=1, device=torch.device("cpu"))


@contextmanager
def process_group(device_type: str) -> Iterator[Processes]:
    """Join the processes that torchrun's environment variables speak of: gloo on CPUs, nccl on GPUs, one GPU each."""
    device = torch.device("cpu")
    if device_type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device_type == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()
