"""What the DAGs look up in Delta tables without Spark, in tables that Spark and the jobs wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from gesr_core.errors import GateRefused
from jobs import score_daily
from tests.toy import DS, Toy

pytest.importorskip("deltalake", reason="the petastorm set has no other reader of Delta")

from pipelines.airflow.tables import has_ds, is_published, refusal

pytestmark = pytest.mark.spark


def test_a_ds_is_seen_as_a_partition_and_as_a_column_of_texts_or_dates(spark: SparkSession, tmp_path: Path) -> None:
    rows = spark.createDataFrame([("2001-02-14", 1), ("2001-02-16", 2)], "ds string, user_id bigint").coalesce(1)
    rows.write.format("delta").partitionBy("ds").save(str(tmp_path / "partitions"))
    rows.write.format("delta").save(str(tmp_path / "texts"))
    rows.selectExpr("CAST(ds AS DATE) AS ds", "user_id").write.format("delta").save(str(tmp_path / "dates"))
    for form in ("partitions", "texts", "dates"):
        seen = [has_ds(str(tmp_path / form), f"2001-02-{day}") for day in (14, 15, 16)]
        assert seen == [True, False, True], form
    assert not has_ds(str(tmp_path / "nowhere"), "2001-02-14")


def test_the_ledger_tells_a_refusal_until_the_day_is_published(spark: SparkSession, tmp_path: Path) -> None:
    toy = Toy.build(spark, tmp_path)
    ledger = str(tmp_path / "ledger")

    def seen() -> tuple[bool, bool]:
        return refusal(ledger, ds=DS, target="scores") is not None, is_published(ledger, ds=DS, target="scores")

    assert seen() == (False, False)
    with pytest.raises(GateRefused, match="largest absolute score"):
        score_daily.main(toy.args("gate.max_abs_score=0.0001"))
    assert seen() == (True, False)
    assert "largest absolute score" in str(refusal(ledger, ds=DS, target="scores"))
    assert refusal(ledger, ds=DS, target="scores_challenger") is None
    assert refusal(ledger, ds="2024-03-11", target="scores") is None
    score_daily.main([*toy.args("gate.max_abs_score=0.0001"), "--accept", "max_abs_score"])
    assert seen() == (False, True)
