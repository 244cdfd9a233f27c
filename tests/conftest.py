"""Fixtures that all tests share. Nothing here starts a JVM until a test asks for `spark`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from gesr_core.config import Config, load_config
from tests.spark_keys import toy_spark_keys

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


if not torch.cuda.is_available():
    # Where there is no GPU, kernels run in Triton's interpreter; it asks for that when it is imported.
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def spark_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """One session for the whole test process: a JVM takes longer to start than most tests take."""
    from pyspark.sql import SparkSession

    keys = toy_spark_keys(tmp_path_factory.mktemp("spark"), short=False)
    # Workers must find this interpreter, whichever environment is active.
    os.environ["PYSPARK_PYTHON"] = sys.executable
    builder = SparkSession.builder.appName("tests")
    for key, value in keys.items():
        builder = builder.config(key, value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    yield session
    session.stop()


@pytest.fixture
def spark(spark_session: SparkSession) -> Iterator[SparkSession]:
    """The session, with nothing cached left behind."""
    yield spark_session
    spark_session.catalog.clearCache()


@pytest.fixture
def job_args(tmp_path: Path) -> list[str]:
    """Command-line options that put every table of `local` into a folder of this test alone."""
    return ["--env", "local", "--set", f"tables.root={tmp_path / 'tables'}"]


@pytest.fixture
def config(job_args: list[str]) -> Config:
    """The `local` configuration with every table in a folder of this test alone."""
    return load_config("local", overrides=[job_args[-1]])
