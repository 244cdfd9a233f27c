"""What the ledger says of the publication that stands for a `ds`. Driver only, pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gesr_core.sink.ledger import LedgerRow
from gesr_core.sink.run import Publication, Run, accepted_shards, gate_answer, not_judged, opened


@dataclass(frozen=True)
class Published:
    """A publication: the run that made it, and its entries.

    `recorded` is None where the run did not live to say that it published. `gate` is the answer's details, with the
    time of the answer where this run or one of the same work recorded it.
    """

    run: Run
    opening: LedgerRow
    accepted: Mapping[int, LedgerRow]
    gate: Mapping[str, Any]
    gate_row: LedgerRow | None
    recorded: LedgerRow | None

    @staticmethod
    def of(rows: Sequence[LedgerRow], standing: Publication) -> Published:
        """Find the entries of what stands among those of its `ds` and target, oldest first.

        Raises:
            InputError: the ledger does not know the run.
        """
        run = opened(rows, standing.run_id)
        mine = [row for row in rows if row.run_id == run.run_id]
        recorded = next((row for row in mine if row.kind == "run_published"), None)
        answer = gate_answer(rows, run)
        gate = (recorded and recorded.details.get("gate")) or (answer.details if answer else {})
        return Published(
            run=run,
            opening=next(row for row in mine if row.kind == "run_opened"),
            accepted=accepted_shards(rows, run.work_id, lost=not_judged(rows, gate)),
            gate=gate,
            gate_row=answer,
            recorded=recorded,
        )
