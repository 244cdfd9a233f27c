"""Spark keys for a handful of rows: what makes a small session start fast and plan little. No JVM here."""

from __future__ import annotations

from pathlib import Path


def toy_spark_keys(scratch: Path, *, short: bool = True) -> dict[str, str]:
    """Return the keys of a session whose files, as far as they are no table's, lie under `scratch`.

    One that is `short` ends before it would pay to compile its code well.
    """
    quick = " -XX:TieredStopAtLevel=1" if short else ""
    return {
        "spark.master": "local[2]",
        "spark.driver.memory": "2g",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        # Nothing lands in the checkout.
        "spark.sql.warehouse.dir": str(scratch / "warehouse"),
        "spark.local.dir": str(scratch / "local"),
        "spark.driver.extraJavaOptions": f"-Dderby.system.home={scratch} -XX:+UseSerialGC{quick}",
        "spark.executorEnv.PYTHONPATH": str(Path(__file__).parents[1]),
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.sql.execution.arrow.pyspark.validateSchema.enabled": "true",
        # Every further partition is a task that does nothing.
        "spark.sql.shuffle.partitions": "2",
        "spark.databricks.delta.snapshotPartitions": "1",
        # Compiling a plan takes longer than running it on a handful of rows.
        "spark.sql.codegen.wholeStage": "false",
        "spark.sql.codegen.factoryMode": "NO_CODEGEN",
        # A vacuum lists a table's files in so many tasks, 10,000 by default.
        "spark.sql.sources.parallelPartitionDiscovery.parallelism": "2",
        # So does running each of its stages as a job of its own.
        "spark.sql.adaptive.enabled": "false",
    }
