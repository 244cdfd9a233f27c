"""The search: what each trained model's trials reached on the validation ds, and which one plan.CHOSEN should name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.quality.measures import SEGMENTS
from benchmarks.quality.plan import CHOSEN, MODELS, TRIALS, Cell
from benchmarks.quality.store import Result


def trial_row(cell: Cell, data: str, result: Result) -> dict[str, Any]:
    """Return what a trial reached; `chosen_by` is the mean NDCG@10 with and without the most bought item."""
    trial = next(name for name in TRIALS[data] if cell.name == f"search_{cell.model}_{name}")
    ((ds, tasks),) = result.values.items()
    of_first = next(iter(tasks.values()))
    return {
        "data": data,
        "model": cell.model,
        "trial": trial,
        "ds": ds,
        "chosen_by": sum(of_first[segment]["ndcg"] for segment in SEGMENTS) / len(SEGMENTS),
        "measures": of_first,
        "elapsed_s": result.facts["elapsed_s"],
        "named_in_plan": CHOSEN[data][cell.model] == trial,
    }


def best_first(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows by data and model, the best trial first."""
    return sorted(rows, key=lambda row: (row["data"], MODELS.index(row["model"]), -row["chosen_by"]))


def trial_in_words(row: dict[str, Any]) -> str:
    """Return a line about a trial; a star marks the one that the plan names."""
    both, without = (row["measures"][segment] for segment in SEGMENTS)
    return (
        f"{row['data']:<8} {row['model']:<10} {row['trial']:<24}{'*' if row['named_in_plan'] else ' '} "
        f"NDCG@10 {both['ndcg']:.4f} ({without['ndcg']:.4f}) NE {both['ne']:.4f} ({without['ne']:.4f}) "
        f"{row['elapsed_s']:.0f} s"
    )
