"""Spark sessions of benchmarks: the local configuration, with files of their own in a folder, and silent logs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pyspark.sql import SparkSession

from gesr_core.config import load_config
from gesr_core.io.session import open_session


@contextmanager
def one_core(name: str, folder: Path) -> Iterator[SparkSession]:
    """Yield a session with one core for all that it starts, JVM and workers, whose own files go into a folder."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    # The whole input is one task's.
    keys = {"spark.master": "local[1]", "spark.driver.memory": "4g", "spark.sql.files.maxPartitionBytes": "8g"}
    try:
        with _session(name, folder, keys) as spark:
            yield spark
    finally:
        os.sched_setaffinity(0, cores)


@contextmanager
def all_cores(name: str, folder: Path) -> Iterator[SparkSession]:
    """Yield a session with all cores of the machine."""
    with _session(name, folder, {"spark.driver.memory": "6g"}) as spark:
        yield spark


@contextmanager
def _session(name: str, folder: Path, own: Mapping[str, str]) -> Iterator[SparkSession]:
    keys = {**load_config("local").spark, **own, "spark.sql.warehouse.dir": str(folder / "warehouse")}
    with open_session(name, spark_keys=keys) as spark:
        spark.sparkContext.setLogLevel("ERROR")
        yield spark
