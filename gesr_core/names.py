"""Every role and column name, once. Runs anywhere; imports nothing of the project."""

from enum import Enum
from typing import Final

# Set by every Databricks Runtime, to its version.
ON_DATABRICKS: Final = "DATABRICKS_RUNTIME_VERSION"


# StrEnum needs Python 3.11; the project starts at 3.10.
class Role(str, Enum):
    """What a table is for; its real name comes from `conf/<env>/tables.yaml`."""

    EVENTS = "events"
    ITEMS = "items"
    USERS = "users"
    CANDIDATES = "candidates"
    IMPRESSIONS = "impressions"
    HISTORIES = "histories"
    HISTORIES_AT = "histories_at"
    STAGING = "staging"
    SCORES = "scores"
    LEDGER = "ledger"
    QUARANTINE = "quarantine"
    METRICS = "metrics"


class Col:
    """Column names of the tables and of the request row."""

    DS: Final = "ds"
    USER_ID: Final = "user_id"
    ITEM_ID: Final = "item_id"
    SHARD: Final = "shard"
    PART: Final = "part"
    RUN_ID: Final = "run_id"
    WORK_ID: Final = "work_id"
    ATTEMPT_ID: Final = "attempt_id"
    # events
    EVENT_TS: Final = "event_ts"
    ACTION: Final = "action"
    VALUE: Final = "value"
    # items, users
    ITEM_KEY: Final = "item_key"
    VALID_FROM: Final = "valid_from"
    # candidates
    CANDIDATES: Final = "candidates"
    SOURCE: Final = "source"
    RETRIEVAL_SCORE: Final = "retrieval_score"
    # impressions
    SHOWN_TS: Final = "shown_ts"
    SAMPLING_RATE: Final = "sampling_rate"
    SAMPLING_WEIGHT: Final = "sampling_weight"
    EXPOSED: Final = "exposed"
    # histories
    HISTORY: Final = "history"
    AS_OF: Final = "as_of"
    # the request row: one request, histories and candidates as parallel arrays
    REQUEST: Final = "request"
    HISTORY_ITEM_ID: Final = "history_item_id"
    HISTORY_ITEM_KEY: Final = "history_item_key"
    HISTORY_TIME_S: Final = "history_time_s"
    HISTORY_ACTION: Final = "history_action"
    HISTORY_VALUE: Final = "history_value"
    CANDIDATE_ITEM_ID: Final = "candidate_item_id"
    CANDIDATE_ITEM_KEY: Final = "candidate_item_key"
    REJECTED: Final = "rejected"
    REASON: Final = "reason"
    # scores
    RANKED: Final = "ranked"
    RANK: Final = "rank"
    SCORE: Final = "score"
    GENERATION: Final = "generation"
    MODEL_VERSION: Final = "model_version"
    CANDIDATES_IN: Final = "candidates_in"
    CANDIDATES_SCORED: Final = "candidates_scored"
    # staging
    HISTORY_EVENTS: Final = "history_events"
    STATS: Final = "stats"


def user_feature(name: str) -> str:
    """Request-row column that holds the user feature `name`."""
    return f"user_{name}"


def label(task: str) -> str:
    """Impressions column (0/1) and training request-row column (array of 0/1) of a task."""
    return f"label_{task}"


def logit(task: str) -> str:
    """Field of `ranked` that holds a task's logit."""
    return f"logit_{task}"
