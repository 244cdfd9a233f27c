"""The tables' contracts: columns and types of every role, once. Pure Python: workers and the driver may import it.

Types are Spark's simple strings. `{user}` and `{item}` stand for an id type, which is BIGINT or STRING.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from gesr_core.names import Col, Role, label, logit

ID_TYPES: Final = ("bigint", "string")

# Reasons for which a candidate, or a whole row of `candidates` (the last two), is not scored.
NULL_ITEM: Final = "null_item_id"
DUPLICATE: Final = "duplicate_candidate"
UNKNOWN_ITEM: Final = "unknown_item"
NULL_USER: Final = "null_user_id"
NO_CANDIDATES: Final = "no_candidates"
# What a multi-valued feature's column may be, and how the types begin that no other feature's may be.
LIST_TYPES: Final = ("array<string>", "array<bigint>", "array<int>", "array<smallint>", "array<tinyint>")
NESTED_TYPES: Final = ("array<", "map<", "struct<")
_FLOATS: Final = ("double", "float")
_DS: Final = ("string", "date")


@dataclass(frozen=True)
class InputColumn:
    """A column that an input table must have, and the types that it may have there."""

    name: str
    types: tuple[str, ...]


def input_columns(role: Role, *, tasks: Sequence[str] = ()) -> tuple[InputColumn, ...]:
    """Columns that a job needs of an input table; declared features are checked apart, by name."""
    user, item = InputColumn(Col.USER_ID, ID_TYPES), InputColumn(Col.ITEM_ID, ID_TYPES)
    ds = InputColumn(Col.DS, _DS)
    if role is Role.EVENTS:
        return (
            user,
            item,
            InputColumn(Col.EVENT_TS, ("timestamp",)),
            InputColumn(Col.ACTION, ("string",)),
            InputColumn(Col.VALUE, _FLOATS),
            ds,
        )
    if role is Role.ITEMS:
        return (item,)
    if role is Role.USERS:
        return (user,)
    if role is Role.CANDIDATES:
        return (ds, user, InputColumn(Col.CANDIDATES, _candidate_array_types()))
    if role is Role.IMPRESSIONS:
        shown = InputColumn(Col.SHOWN_TS, ("timestamp",))
        return (ds, user, item, shown, *(InputColumn(label(t), ("int", "tinyint", "bigint")) for t in tasks))
    raise ValueError(f"{role.value} is written by our own jobs: it has no input contract")


def _candidate_array_types() -> tuple[str, ...]:
    return tuple(
        f"array<struct<item_id:{item},source:string,retrieval_score:{score}>>" for item in ID_TYPES for score in _FLOATS
    )


def history_type(item: str) -> str:
    """Type of `histories.history`: oldest to newest in the total order (event_ts, item_id, action, value)."""
    return f"array<struct<item_id:{item},event_ts:timestamp,action:string,value:double>>"


def rejected_type(item: str) -> str:
    """Candidates of a request that are not scored, and why; a null item_id stands for the whole row."""
    return f"array<struct<item_id:{item},reason:string>>"


def ranked_type(item: str, *, tasks: Sequence[str]) -> str:
    """Type of `scores.ranked`: falling score, ties by item id; `rank` is 1-based."""
    logits = ",".join(f"{logit(task)}:float" for task in tasks)
    return f"array<struct<item_id:{item},rank:int,score:float,{logits}>>"


# What scoring a window of requests took (runtime/stats.py), at the first of its score rows, null at the others.
STATS_TYPE: Final = (
    "struct<window:bigint,part:bigint,device:string,requests:bigint,pairs:bigint,padded_pairs:bigint,events:bigint,"
    "padded_events:bigint,micro_batches:bigint,bytes_in:bigint,bytes_out:bigint,decode_s:double,compute_s:double,"
    "encode_s:double,load_s:double,peak_bytes:bigint,halved:array<struct<micro_batch:bigint,halvings:bigint>>>"
)


def written_columns(
    role: Role, *, user: str = "bigint", item: str = "bigint", tasks: Sequence[str] = ()
) -> dict[str, str]:
    """Columns and types of a table that our jobs write.

    Raises:
        ValueError: the role is brought by the user.
    """
    history = {Col.USER_ID: user, Col.SHARD: "int", Col.HISTORY: history_type(item)}
    scored = {Col.USER_ID: user, Col.RANKED: ranked_type(item, tasks=tasks)}
    contracts: dict[Role, dict[str, str]] = {
        Role.EVENTS: {
            Col.USER_ID: user,
            Col.ITEM_ID: item,
            Col.EVENT_TS: "timestamp",
            Col.ACTION: "string",
            Col.VALUE: "double",
            Col.DS: "string",
        },
        Role.CANDIDATES: {
            Col.DS: "string",
            Col.USER_ID: user,
            Col.CANDIDATES: f"array<struct<item_id:{item},source:string,retrieval_score:double>>",
        },
        Role.IMPRESSIONS: {
            Col.DS: "string",
            Col.USER_ID: user,
            Col.ITEM_ID: item,
            Col.SHOWN_TS: "timestamp",
            Col.SAMPLING_RATE: "float",
            Col.SAMPLING_WEIGHT: "float",
            Col.EXPOSED: "boolean",
            **{label(task): "int" for task in tasks},
        },
        Role.HISTORIES: history,
        Role.HISTORIES_AT: {Col.AS_OF: "string", **history},
        Role.STAGING: {
            Col.WORK_ID: "string",
            Col.ATTEMPT_ID: "string",
            Col.SHARD: "int",
            **scored,
            Col.REJECTED: rejected_type(item),
            Col.CANDIDATES_IN: "bigint",
            Col.CANDIDATES_SCORED: "bigint",
            Col.HISTORY_EVENTS: "bigint",
            Col.STATS: STATS_TYPE,
        },
        Role.SCORES: {
            Col.DS: "string",
            **scored,
            Col.GENERATION: "bigint",
            Col.MODEL_VERSION: "string",
            Col.RUN_ID: "string",
        },
        Role.LEDGER: LEDGER_COLUMNS,
        Role.QUARANTINE: {
            Col.DS: "string",
            Col.RUN_ID: "string",
            "origin": "string",
            Col.USER_ID: "string",
            Col.ITEM_ID: "string",
            Col.REASON: "string",
        },
        Role.METRICS: {
            Col.DS: "string",
            Col.RUN_ID: "string",
            "ordering": "string",
            "metric": "string",
            "k": "int",
            "segment": "string",
            "value": "double",
            "ci_low": "double",
            "ci_high": "double",
            "n": "bigint",
        },
    }
    if role not in contracts:
        raise ValueError(f"{role.value} is brought by the user: our jobs do not write it")
    return contracts[role]


# One append-only table for runs and shards; `kind` says which a row is.
LEDGER_COLUMNS: Final = {
    # run_opened, shard_accepted, gate_passed, gate_refused, run_published, generation_taken, replayed, as_of
    "kind": "string",
    "job": "string",
    Col.DS: "string",
    "target": "string",
    Col.RUN_ID: "string",
    Col.SHARD: "int",
    Col.ATTEMPT_ID: "string",
    Col.GENERATION: "bigint",
    "counts": "map<string,bigint>",
    "elapsed_s": "double",
    "details": "string",  # JSON: pinned inputs, checkpoint, configuration hash, manifest
    "recorded_at": "timestamp",
}

# Partition columns of the tables that we create.
PARTITIONED_BY: Final[dict[Role, tuple[str, ...]]] = {
    Role.EVENTS: (Col.DS,),
    Role.CANDIDATES: (Col.DS,),
    Role.IMPRESSIONS: (Col.DS,),
    Role.HISTORIES_AT: (Col.AS_OF,),
    Role.STAGING: (Col.WORK_ID,),
    Role.SCORES: (Col.DS,),
    Role.LEDGER: (Col.DS,),
    Role.QUARANTINE: (Col.DS,),
    Role.METRICS: (Col.DS,),
}
