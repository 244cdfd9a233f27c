"""Tables of the documents: what they say of a line, and that the documents hold the kept line's."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.quality.markdown import DOCUMENTS, Line, filled, kept_line


def row(cell: str, ds: str, segment: str, ndcg: float, **against: Any) -> dict[str, Any]:
    """A row of the line."""
    measures = {"ndcg": {"mean": ndcg, "low": ndcg, "high": ndcg}}
    return {
        "data": "ta_feng", "cell": cell, "ds": ds, "task": "bought", "segment": segment, "seeds": 2,
        "measures": measures, **against,
    }  # fmt: skip


def difference(value: float, width: float) -> dict[str, Any]:
    """A difference in NDCG@10 with its interval."""
    return {"ndcg": {"value": value, "low": value - width, "high": value + width}}


ROWS = [
    row(cell, ds, segment, ndcg / (1 if segment == "all" else 2), **against)
    for cell, ds, ndcg, against in (
        ("gesr", "2001-02-08", 0.2, {}),
        ("gesr", "2001-02-15", 0.3, {}),
        ("gesr_without_gating", "2001-02-08", 0.1, {"against_gesr": difference(-0.1, 0.05)}),
        ("gesr_without_gating", "2001-02-15", 0.2, {"against_gesr": difference(-0.1, 0.15)}),
    )
    for segment in ("all", "without_top_item")
]
LINE = Line({"rows": ROWS, "goals": [{"name": "g", "goal": 2.0, "value": 1.5, "met": False, "note": "n"}]})


def document(name: str) -> str:
    """A document with one table in it."""
    return f"before\n\n<!-- quality:{name} -->\nold\n<!-- /quality:{name} -->\nafter\n"


def test_a_part_is_compared_with_the_whole_and_only_what_is_between_the_marks_changes() -> None:
    found = filled(document("ablation"), LINE)
    assert found.startswith("before\n\n<!-- quality:ablation -->\n| ta_feng |")
    assert found.endswith("|\n<!-- /quality:ablation -->\nafter\n")
    assert "| `gesr` | 0.2500 (0.1250) |  |  |  |\n" in found
    # The second interval holds 0.
    assert "| `gesr_without_gating` | 0.1500 (0.0750) |  | -0.1000 (1 of 2) |  |\n" in found
    assert filled(found, LINE) == found


def test_parts_stand_side_by_side_for_every_data_set() -> None:
    other = [dict(one, data="ml_100k") for one in ROWS if one["cell"] == "gesr"]
    found = filled(document("parts"), Line({"rows": [*ROWS, *other], "goals": []}))
    assert "|  | ta_feng, NDCG@10 | ta_feng, NE | ml_100k, NDCG@10 | ml_100k, NE |\n" in found
    assert "| `gesr` | 0.2500 (0.1250) |  | 0.2500 (0.1250) |  |\n" in found
    assert "| `gesr_without_gating` | 0.1500 (0.0750) |  |  |  |\n" in found


def test_the_comparison_has_every_ds_and_the_goals_their_verdicts() -> None:
    assert "| `gesr` | 2 | 0.2000 (0.1000) | 0.3000 (0.1500) |  |  |\n" in filled(document("comparison"), LINE)
    assert "| g | 2 | 1.5000 | **missed** | n |\n" in filled(document("goals"), LINE)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documents_quote_the_kept_line(path: Any) -> None:
    text = path.read_text()
    assert "<!-- quality:" in text
    assert filled(text, kept_line()) == text
