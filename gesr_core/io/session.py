"""Open the Spark session of a job, or take the one that exists. Driver only.

A session that exists (a notebook, Databricks) keeps its master and is never stopped; the settings that results would
depend on are set for the job's duration and put back.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pyspark import SparkContext
from pyspark.sql import SparkSession

from gesr_core.errors import ConfigurationError
from gesr_core.names import ON_DATABRICKS
from gesr_core.spark_settings import settings

# Results must not depend on these; a job runs under the same values everywhere.
JOB_SETTINGS: Final[Mapping[str, str]] = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.ansi.enabled": "true",
    # replaceWhere cannot go with dynamic partition overwrite.
    "spark.sql.sources.partitionOverwriteMode": "static",
    # Float sums must not depend on how adaptive execution cut the partitions of a shuffle.
    "spark.sql.adaptive.coalescePartitions.enabled": "false",
    "spark.sql.execution.arrow.pyspark.enabled": "true",
}


@contextmanager
def open_session(app_name: str, *, spark_keys: Mapping[str, object]) -> Iterator[SparkSession]:
    """Yield a session with Delta and the job's settings; stop it afterwards only if this call started it.

    Raises:
        ConfigurationError: no usable Java, or Delta's classes are missing.
    """
    existing = _existing()
    spark = existing or _start(app_name, spark_keys)
    try:
        _require_delta(spark)
        with settings(spark, JOB_SETTINGS):
            yield spark
    finally:
        if existing is None:
            spark.stop()


def _existing() -> SparkSession | None:
    """The session of this process, also when another thread made it: an active one is known to its own thread alone."""
    active = SparkSession.getActiveSession()
    if active is None and SparkContext._active_spark_context is not None:
        # Without options, it changes nothing.
        return SparkSession.builder.getOrCreate()
    return active


def _start(app_name: str, spark_keys: Mapping[str, object]) -> SparkSession:
    # Under spark-submit the JVM already runs (the gateway's port is in the environment), so Java was found.
    if "PYSPARK_GATEWAY_PORT" not in os.environ:
        _require_java()
    # Executors start Python by name: without this they may find another interpreter.
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.appName(app_name)
    for key, value in spark_keys.items():
        builder = builder.config(key, str(value).lower() if isinstance(value, bool) else str(value))
    return builder.getOrCreate()


def _require_java() -> None:
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home) / "bin" / "java") if home else shutil.which("java")
    remedy = "set JAVA_HOME to a Java 17 or 21 (`make env` finds or installs one)"
    if not java or not Path(java).exists():
        raise ConfigurationError(f"Java not found ({'JAVA_HOME=' + home if home else 'no java on PATH'}): {remedy}")
    printed = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(\d+)', printed)
    if not version or int(version.group(1)) not in (17, 21):
        found = printed.splitlines()[0] if printed else "no version"
        raise ConfigurationError(f"Spark needs Java 17 or 21, but {java} says {found}: {remedy}")


def _require_delta(spark: SparkSession) -> None:
    # Databricks Runtime has Delta in classes of its own.
    if ON_DATABRICKS in os.environ:
        return
    loader = spark.sparkContext._jvm.java.lang.Thread.currentThread().getContextClassLoader()  # type: ignore[union-attr]
    if loader.getResource("io/delta/sql/DeltaSparkSessionExtension.class") is not None:
        return
    minor = ".".join(spark.version.split(".")[:2])
    raise ConfigurationError(
        f"Delta's classes are missing from this Spark {spark.version}: start the job with "
        f"--packages io.delta:delta-spark_{minor}_2.13:4.4.0 (or run `make env` for a local environment)"
    )
