"""What the ledger and the target say of a `ds`, or of a run, as lines for the terminal. Pure; driver only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gesr_core.sink.gate import checks_from_json
from gesr_core.sink.ledger import LedgerRow
from gesr_core.sink.run import Publication
from gesr_core.sink.work import Work


def describe(
    rows: Sequence[LedgerRow],
    standing: Publication | None,
    *,
    ds: str,
    target: str,
    shards: int,
    run_id: str | None = None,
) -> Iterator[str]:
    """Yield lines about a `ds` of a target: what stands, and each run with how far it came.

    Args:
        rows: the ledger's entries of the `ds` and target, oldest first.
        standing: what the target holds of the `ds`.
        ds: the day.
        target: the table.
        shards: how many there are by the configuration.
        run_id: leave out the other runs.
    """
    yield f"ds {ds} of {target}: {_standing(rows, standing)}"
    openings = [row for row in rows if row.kind == "run_opened" and run_id in (None, row.run_id)]
    for opening in openings:
        yield ""
        yield from _run(rows, opening, standing, shards=shards)
    if not openings:
        yield "  the ledger knows no run of it"


def _standing(rows: Sequence[LedgerRow], standing: Publication | None) -> str:
    if standing is None:
        return "not published"
    known = any(row.kind == "run_published" and row.run_id == standing.run_id for row in rows)
    unsaid = "" if known else "; it did not live to record that: the next start finishes for it"
    return f"generation {standing.generation} of run {standing.run_id} stands{unsaid}"


def _run(rows: Sequence[LedgerRow], opening: LedgerRow, standing: Publication | None, *, shards: int) -> Iterator[str]:
    mine = [row for row in rows if row.run_id == opening.run_id]
    work = opening.details["work_id"]
    resumes = f", resumes run {opening.details['resumes']}" if opening.details.get("resumes") else ""
    yield f"run {opening.run_id}  opened {_time(opening)} on generation {opening.generation}{resumes}"
    pins = opening.details["pins"]
    reference = f" ({pins['checkpoint']['reference']})" if "reference" in pins["checkpoint"] else ""
    yield f"  checkpoint  {pins['checkpoint']['model']}/{pins['checkpoint']['id']}{reference}"
    for role, table in pins["inputs"].items():
        yield f"  {role:<11} version {table['version']} of {table['location']}"
    accepted = {row.shard for row in rows if row.kind == "shard_accepted" and row.details.get("work_id") == work}
    own = sum(row.kind == "shard_accepted" for row in mine)
    yield f"  shards      {len(accepted)} of {shards} accepted, {own} of them scored by this run"
    for row in rows:
        of_work = row.details.get("work_id") == work or row.run_id == opening.run_id
        if row.kind in ("gate_passed", "gate_refused") and of_work:
            yield f"  gate        {row.kind.removeprefix('gate_')} {_time(row)}"
            yield from (f"    {line}" for line in _checks(row.details))
    published = next((row for row in mine if row.kind == "run_published"), None)
    if published is not None:
        replaced = standing is not None and standing.run_id != opening.run_id
        since = ", replaced since" if replaced else ""
        yield f"  published   {_time(published)} as generation {published.generation}{since}"
        yield f"  work        {Work.from_json(published.details.get('work', {}))}"
    elif standing is not None and standing.run_id == opening.run_id:
        yield "  published   yes, not recorded yet"
    else:
        yield "  published   no"


def _checks(details: Mapping[str, Any]) -> Iterator[str]:
    for check in checks_from_json(details["checks"]):
        verdict = "ok" if check.passed else "OVERRULED" if check.accepted else "REFUSED"
        yield f"{verdict:<10}{check}"


def _time(row: LedgerRow) -> str:
    return f"{row.recorded_at:%Y-%m-%d %H:%M:%S}" if row.recorded_at else "at an unknown time"
