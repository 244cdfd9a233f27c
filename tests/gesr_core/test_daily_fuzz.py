"""A day of random nonsense through the whole job: what is published and what is quarantined is what a loop says."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from gesr_core.io.tables import read_table
from gesr_core.names import Role
from jobs import score_daily
from tests.toy import DS, ITEMS, Toy

pytestmark = [pytest.mark.spark, pytest.mark.slow]

LENIENT = ("gate.max_quarantined_share=1.0", "gate.max_unknown_share=1.0")
Rejected = Counter[tuple[str | None, str | None, str]]


def nonsense(rng: random.Random) -> list[tuple[Any, ...]]:
    """Rows of users who stand there several times or have no id, of lists that are null, empty or of anything."""
    items = [*range(1, ITEMS + 1), 0, -1, 999, 2**63 - 1, -(2**63), None, None]
    # Every reason occurs, whatever is drawn.
    rows: list[tuple[Any, ...]] = [(DS, None, [(5, "own", 0.5)])]
    for _ in range(150):
        user = rng.choice([None, *range(30), 777, 2**63 - 1, -(2**63)])
        chosen = rng.choices(items, k=rng.choice([0, 1, 5, 20]))
        scores = [0.5, float("nan"), float("inf"), None]
        retrieved = [(item, rng.choice(["own", "", None]), rng.choice(scores)) for item in chosen]
        rows.append((DS, user, rng.choice([None, retrieved, retrieved, retrieved])))
    return rows


def outcome(rows: list[tuple[Any, ...]]) -> tuple[dict[Any, set[int]], Rejected]:
    """Return the items of each user that are to be scored, and what is to be quarantined."""
    by_user: dict[Any, list[Any]] = {}
    for _, user, retrieved in rows:
        by_user.setdefault(user, []).extend(item for item, *_ in retrieved or [])
    scored: dict[Any, set[int]] = {}
    rejected: Rejected = Counter()
    for user, items in by_user.items():
        name = None if user is None else str(user)
        if not items:
            rejected[name, None, "no_candidates"] += 1
        elif user is None:
            rejected.update((None, None if item is None else str(item), "null_user_id") for item in items)
        else:
            for item, count in Counter(items).items():
                if item is None:
                    rejected[name, None, "null_item_id"] += count
                    continue
                if count > 1:
                    rejected[name, str(item), "duplicate_candidate"] += count - 1
                if 1 <= item <= ITEMS:
                    scored.setdefault(user, set()).add(item)
                else:
                    rejected[name, str(item), "unknown_item"] += 1
    return scored, rejected


@pytest.mark.parametrize("seed", [1, 2])
def test_every_candidate_of_a_day_of_nonsense_is_scored_or_quarantined(
    spark: SparkSession, tmp_path: Path, seed: int
) -> None:
    rows = nonsense(random.Random(seed))
    toy = Toy.build(spark, tmp_path, candidates=rows, overrides=(*LENIENT, "scoring.top_k=100"))
    score_daily.main(toy.args())
    scored, rejected = outcome(rows)
    published = read_table(spark, toy.config.table(Role.SCORES)).collect()
    assert {row["user_id"]: {pair["item_id"] for pair in row["ranked"]} for row in published} == scored
    assert sum(len(row["ranked"]) for row in published) == sum(map(len, scored.values()))
    found = read_table(spark, toy.config.table(Role.QUARANTINE)).select("user_id", "item_id", "reason").collect()
    assert Counter(map(tuple, found)) == rejected
    assert len({reason for _, _, reason in rejected}) == 5
