"""What the DAGs look up in Delta tables by themselves, in a second or two and without Spark. Imports no Airflow."""

from __future__ import annotations

import json
from typing import Any

from deltalake import DeltaTable, QueryBuilder
from deltalake.exceptions import TableNotFoundError


def has_ds(location: str, ds: str) -> bool:
    """Say whether a table holds rows of a `ds` (a STRING or DATE column, a partition or not); False without a table."""
    return bool(_rows(location, f"SELECT 1 AS one FROM looked_at WHERE CAST(ds AS VARCHAR) = '{ds}' LIMIT 1"))


def is_published(ledger: str, *, ds: str, target: str) -> bool:
    """Say whether the ledger knows a publication of the `ds` by score_daily."""
    rows = _of_day(ledger, ds=ds, target=target)
    return any(row["kind"] == "run_published" for row in rows)


def refusal(ledger: str, *, ds: str, target: str) -> str | None:
    """Return why the gate refused a `ds`, if that is the newest that the ledger has of score_daily on it.

    A start on what was refused records nothing again, so an old refusal stands until a run is opened after it.
    """
    rows = _of_day(ledger, ds=ds, target=target)
    if not rows or rows[-1]["kind"] != "gate_refused":
        return None
    checks = json.loads(rows[-1]["details"])["checks"]
    broken = [check for check in checks if not check["passed"] and not check["accepted"]]
    said = "; ".join(f"{check['name']} is {check['value']}, bound {check['bound']}" for check in broken)
    return f"GateRefused: {said} (run {rows[-1]['run_id']})"


def _of_day(ledger: str, *, ds: str, target: str) -> list[dict[str, Any]]:
    return _rows(
        ledger,
        "SELECT kind, run_id, details FROM looked_at WHERE job = 'score_daily' "
        f"AND ds = '{ds}' AND target = '{target}' "
        "AND kind IN ('run_opened', 'gate_passed', 'gate_refused', 'run_published') ORDER BY recorded_at",
    )


def _rows(location: str, query: str) -> list[dict[str, Any]]:
    try:
        table = DeltaTable(location)
    except TableNotFoundError:
        return []
    found = QueryBuilder().register("looked_at", table).execute(query).read_all()
    columns = [found.column(name).to_pylist() for name in found.column_names]
    return [dict(zip(found.column_names, values, strict=True)) for values in zip(*columns, strict=True)]
