"""Rows of `metrics` as tables: which stand together, in which order, and what is left out."""

from __future__ import annotations

from gesr_core.report.facts import MetricRow
from gesr_core.report.metric_tables import (
    OVERALL,
    calibration_bins,
    differences_table,
    drift_table,
    leading_head,
    runs_table,
    segment_tables,
    segments,
)
from tests.reports import OTHER, RUN, metric_rows

ROWS = [row for row in metric_rows() if row.run_id == RUN]


def row(metric: str, value: float, *, k: int | None = None, segment: str = "all", ordering: str = "model") -> MetricRow:
    return MetricRow("r", ordering, metric, k, segment, value, None, None, 1)


def test_declared_segments_have_a_table_each_after_that_of_everything() -> None:
    tables = segment_tables(ROWS)
    assert [table.title for table in tables] == [OVERALL, "history_length", "source", "user.age_group"]
    assert tables[0].heads == (
        ("ndcg", 10), ("ndcg", 50), ("recall", 10), ("recall", 50), ("survival", 50), ("auc", None)
    )  # fmt: skip
    assert [line.labels for line in tables[0].lines][:5] == [
        ("all", "model"), ("all", "retrieval_order"), ("all", "popularity"), ("all", "random"),
        ("without_top_item", "model"),
    ]  # fmt: skip


def test_values_of_a_segment_stand_in_the_order_of_their_numbers() -> None:
    lengths = next(table for table in segment_tables(ROWS) if table.title == "history_length")
    assert [line.labels[0] for line in lengths.lines if line.labels[1] == "model"] == ["0", "1-9", "10-49"]
    of_ndcg = segments([row for row in ROWS if row.metric == "ndcg"])
    assert of_ndcg[:5] == ["all", "without_top_item", "history_length:0", "history_length:1-9", "history_length:10-49"]


def test_each_cell_holds_its_own_row() -> None:
    for table in segment_tables(ROWS):
        for line in table.lines:
            for (metric, k), cell in zip(table.heads, line.cells, strict=True):
                if cell is not None:
                    assert (cell.metric, cell.k, cell.ordering) == (metric, k, line.labels[1])
                    assert cell.segment.endswith(line.labels[0])


def test_curves_drift_and_differences_are_in_tables_of_their_own() -> None:
    named = {metric for table in segment_tables(list(metric_rows())) for metric, _ in table.heads}
    assert not named & {"calibration_predicted", "calibration_observed", "score_psi", "ndcg_difference"}
    assert [line.labels for line in drift_table(ROWS).lines] == [("2024-03-09",), ("2024-03-08",)]
    [difference] = differences_table(list(metric_rows())).lines
    assert difference.labels == (OTHER, RUN, "all")
    assert [(p.k, p.value < o.value) for p, o in calibration_bins(ROWS)] == [(k, True) for k in (1, 2, 3, 4)]


def test_publications_stand_side_by_side_in_what_compares() -> None:
    table = runs_table(list(metric_rows()), [RUN, OTHER, "unmeasured"])
    assert ("auc", None) not in table.heads
    values = {line.labels[0]: line.cells[0] for line in table.lines}
    assert values["unmeasured"] is None
    assert [round(cell.value, 6) for cell in values.values() if cell] == [0.13, 0.15]


def test_an_unknown_metric_comes_last_and_is_not_lost() -> None:
    rows = [row("zeal", 1.0), row("auc", 0.5), row("ndcg", 0.1, k=100), row("ndcg", 0.1, k=10)]
    [table] = segment_tables(rows)
    assert table.heads == (("ndcg", 10), ("ndcg", 100), ("auc", None), ("zeal", None))
    assert leading_head(rows) == ("ndcg", 10)


def test_nothing_measured_gives_nothing() -> None:
    assert segment_tables([]) == []
    assert leading_head([]) is None
    assert not drift_table([]).lines
    assert not differences_table([]).lines
