"""Typed, validated configuration: conf/base/*.yaml, then conf/<env>/*.yaml, then --set key=value.

A file's name is its section. All errors are reported at once, before Spark starts. Runs on the driver; knows neither
Spark nor torch. What a worker needs travels in small frozen dataclasses that the jobs build from here.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from gesr_core.errors import ConfigurationError
from gesr_core.names import Role

_PACKAGE = Path(__file__).resolve().parent
# The checkout; a wheel's relative folders are those of the working directory.
PROJECT_ROOT = _PACKAGE.parent if (_PACKAGE.parent / "setup.cfg").is_file() else Path.cwd()
# In a checkout a link to its conf/, in a wheel what conf/ was when it was built.
CONF_DIR = (_PACKAGE / "conf").resolve()

_CATALOG_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*){0,2}")
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
Identifier = Annotated[str, Field(pattern=rf"^{_IDENTIFIER.pattern}$")]


class Section(BaseModel):
    """Base of every section: immutable, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class TableRef:
    """A role bound to its real table: a catalog name, a URI or an absolute folder, and the columns' real names.

    `keep_days`: how long log and removed files are kept where a job of ours creates the table.
    """

    role: str
    location: str
    columns: Mapping[str, str]
    keep_days: int | None = None

    @property
    def is_path(self) -> bool:
        return "/" in self.location

    @property
    def local_folder(self) -> Path | None:
        """The folder on this machine, or on what is mounted there, that the table is; None where it is none."""
        return _local_path(self.location)

    @property
    def sql_name(self) -> str:
        """The table as Spark SQL names it; every part is quoted and was validated, so nothing can be injected."""
        if self.is_path:
            return f"delta.`{self.location}`"
        return ".".join(f"`{part}`" for part in self.location.split("."))


def _is_path(value: str) -> bool:
    """Say whether a text is a folder or URI that cannot end a quoted name in SQL or leave what it names."""
    printable = all(char.isprintable() for char in value)
    return "/" in value and printable and "`" not in value and ".." not in value.split("/")


class TableConfig(Section):
    """Where a role's table is and what its columns are called there (contract name -> real name)."""

    # A catalog name (catalog.schema.table), a URI or a folder; null: the folder <root>/<role>.
    location: str | None = None
    # Name in the contract: name in your table, where they differ.
    columns: dict[Identifier, str] = {}

    @field_validator("location")
    @classmethod
    def _is_name_or_path(cls, value: str | None) -> str | None:
        if value is None or _is_path(value) or _CATALOG_NAME.fullmatch(value):
            return value
        raise ValueError(f"{value!r} is neither a table name (catalog.schema.table) nor a path or URI")


class TablesConfig(Section):
    """One entry per role. With `root`, a role without a location is the folder `<root>/<role>`."""

    # Folder or URI of the roles without a location.
    root: str | None = None
    events: TableConfig = TableConfig()
    items: TableConfig = TableConfig()
    users: TableConfig = TableConfig()
    candidates: TableConfig = TableConfig()
    impressions: TableConfig = TableConfig()
    histories: TableConfig = TableConfig()
    histories_at: TableConfig = TableConfig()
    staging: TableConfig = TableConfig()
    scores: TableConfig = TableConfig()
    ledger: TableConfig = TableConfig()
    quarantine: TableConfig = TableConfig()
    metrics: TableConfig = TableConfig()

    @field_validator("root")
    @classmethod
    def _root_is_a_path(cls, value: str | None) -> str | None:
        if value is None or _is_path(f"{value}/"):
            return value
        raise ValueError(f"{value!r} is no folder or URI")

    @model_validator(mode="after")
    def _every_role_is_somewhere(self) -> TablesConfig:
        missing = [role.value for role in Role if getattr(self, role.value).location is None and self.root is None]
        if missing:
            raise ValueError(f"no location for {', '.join(missing)}, and no root to derive one from")
        return self


class StorageConfig(Section):
    """Folders for what is not a table; relative ones are under the project."""

    # What jobs/train.py writes: <model>/<id>.
    checkpoints: str
    # What jobs/export_items.py writes: <checkpoint>/<ds>/<items version>.
    item_states: str
    # What jobs/train.py reads, as Parquet; may be deleted.
    training_sets: str
    # Where report.py writes without --out; null: nowhere. A folder of the driver's.
    reports: str | None = None


class Feature(Section):
    """A declared column: `categorical` (one value), `multi` (a list of texts or integers) or `numeric`."""

    # Name of the column.
    name: Identifier
    # What a row holds in it.
    kind: Literal["categorical", "multi", "numeric"]
    # log1p: log(1 + x), for numbers of a wide range.
    transform: Literal["none", "log1p"] = "none"
    # A longer list keeps the first of its distinct values in the order of their texts.
    max_values: Annotated[int, Field(ge=2, le=64)] = 8

    @model_validator(mode="after")
    def _says_nothing_without_effect(self) -> Feature:
        for key, kind in (("transform", "numeric"), ("max_values", "multi")):
            if self.kind != kind and getattr(self, key) != Feature.model_fields[key].default:
                raise ValueError(f"{self.name} is {self.kind}: {key} is for kind {kind} alone")
        return self


def list_names(features: Sequence[Feature]) -> list[str]:
    """Return the names of the features whose columns hold lists."""
    return [feature.name for feature in features if feature.kind == "multi"]


class ItemFeature(Feature):
    """A declared column of `items`."""


class UserFeature(Feature):
    """A declared column of `users`."""


class ItemStatistic(Section):
    """A numeric item feature derived from the events before the request time (within `window_days`, if given).

    `repeat_share` is the share of the item's users with its events on at least two dates.
    """

    # Yours to choose; no column has it.
    name: Identifier
    # What is counted of each item.
    kind: Literal["users", "events", "mean_value", "days_since_first", "days_since_last", "repeat_share"]
    # Count only events of so many days; null: all.
    window_days: Annotated[int, Field(gt=0)] | None = None
    # log1p: log(1 + x).
    transform: Literal["none", "log1p"] = "log1p"


class EventSignal(Section):
    """A signal derived for each event of a history, without a column of its own.

    - `below_share`: the event's value lies below `share` of the item's numeric feature or statistic `of`, in the same
      unit (a video that was skipped).
    - `repeat`: the same item occurs earlier in the history.
    - `days_since_same`: how long ago the user's previous event with the same item was.
    """

    # Yours to choose; no column has it.
    name: Identifier
    # Which signal.
    kind: Literal["below_share", "repeat", "days_since_same"]
    # For below_share: of the item's number.
    share: Annotated[float, Field(gt=0)] | None = None
    # For below_share: a numeric item feature or a statistic.
    of: Identifier | None = None

    @model_validator(mode="after")
    def _has_what_its_kind_needs(self) -> EventSignal:
        compares = self.kind == "below_share"
        if compares != (self.share is not None) or compares != (self.of is not None):
            need = "needs share and of" if compares else "takes neither share nor of"
            raise ValueError(f"event signal {self.name!r}: kind {self.kind} {need}")
        return self


class HardMatch(Section):
    """A pair of item fields whose equality is counted: `item_id` or an item feature of categories, on each side.

    A pair may be declared several times with different narrowings.
    """

    # Field of the history's items.
    history: Identifier
    # Field of the candidate.
    candidate: Identifier
    # Count only events of at most this age.
    window_days: Annotated[int, Field(gt=0)] | None = None
    # Count only events of these actions; empty: of any.
    actions: list[str] = []


class FeaturesConfig(Section):
    """What the models may read."""

    # Columns of `items`.
    item: list[ItemFeature] = []
    # Numbers of each item that are made from `events`.
    item_statistics: list[ItemStatistic] = []
    # Columns of `users`.
    user: list[UserFeature] = []
    # Signals of each event of a history.
    event_signals: list[EventSignal] = []
    # Fields whose equal values are counted.
    hard_match: list[HardMatch] = []
    # Items with fewer events than this before the first validation request share the unknown id's embedding.
    item_id_min_events: Annotated[int, Field(ge=1)] = 5

    @model_validator(mode="after")
    def _names_are_consistent(self) -> FeaturesConfig:
        _require_distinct([*(f.name for f in self.item), *(s.name for s in self.item_statistics)])
        _require_distinct([f.name for f in self.user])
        _require_distinct([s.name for s in self.event_signals])
        _require_distinct([_described(pair) for pair in self.hard_match])
        fields = ["item_id", *(f.name for f in self.item if f.kind != "numeric")]
        numbers = [*(f.name for f in self.item if f.kind == "numeric"), *(s.name for s in self.item_statistics)]
        named = [("hard_match", name, fields) for pair in self.hard_match for name in (pair.history, pair.candidate)]
        named += [("event_signals", s.of, numbers) for s in self.event_signals if s.of is not None]
        for section, name, known in named:
            if name not in known:
                raise ValueError(f"{section} names {name!r}, which is none of {known}{_did_you_mean(name, known)}")
        return self


class Task(Section):
    """A 0/1 label: an event of one of `actions` within the label window (any action when empty)."""

    # Yours to choose: impressions have a column label_<name>, scores a field logit_<name>.
    name: Identifier
    # Actions that make the label 1; empty: any.
    actions: list[str] = []
    # `user_median`: the event's value must also exceed the user's own median value before the request time.
    value_above: Literal["user_median"] | None = None
    # Weight in the training loss.
    loss_weight: Annotated[float, Field(ge=0)] = 1.0
    # Weight of the logit in the score; evaluate measures the task with the largest.
    score_weight: float = 0.0


class LabelsConfig(Section):
    """Tasks and the window that their labels come from."""

    window_days: Annotated[int, Field(gt=0)]
    # In the order of the logits in `scores`.
    tasks: Annotated[list[Task], Field(min_length=1)]

    @field_validator("tasks")
    @classmethod
    def _names_differ(cls, tasks: list[Task]) -> list[Task]:
        _require_distinct([task.name for task in tasks])
        return tasks

    @model_validator(mode="after")
    def _some_task_scores(self) -> LabelsConfig:
        if not any(task.score_weight for task in self.tasks):
            raise ValueError("every task has score_weight 0: at least one must enter the score")
        return self

    @property
    def scored_task(self) -> Task:
        """The task that scores are about: the one with the largest `score_weight`."""
        return max(self.tasks, key=lambda task: task.score_weight)

    def score_weights(self, tasks: Sequence[str]) -> tuple[float, ...]:
        """Return the weights of a checkpoint's tasks in the score, in its order.

        Raises:
            ConfigurationError: the checkpoint has a task that is not declared, or the other way round.
        """
        declared = {task.name: task.score_weight for task in self.tasks}
        if set(declared) != set(tasks):
            raise ConfigurationError(
                f"labels.tasks declares {sorted(declared)}, but the checkpoint was trained on {sorted(tasks)}: "
                "train again"
            )
        return tuple(declared[task] for task in tasks)


class HistoriesConfig(Section):
    """How histories are kept."""

    max_events: Annotated[int, Field(gt=0)]
    # How far back `events` is read again each day when it has no change data feed.
    late_window_days: Annotated[int, Field(gt=0)]
    # Requests leave out older events; the kept histories have them all the same.
    window_days: Annotated[int, Field(gt=0)] | None = None


class CandidatesConfig(Section):
    """The stand-in retrieval."""

    # A user gets so many at most.
    max_candidates: Annotated[int, Field(gt=0)]
    # Users with an event in this many days before the request time get candidates.
    active_days: Annotated[int, Field(gt=0)]
    # A past item's score is its number of events / (1 + days since the last one / own_decay_days).
    own_decay_days: Annotated[float, Field(gt=0)]
    # Past items of the user, at most; 0: none.
    own_items: Annotated[int, Field(ge=0)]
    # Most popular items, at most.
    popular_items: Annotated[int, Field(ge=0)]
    # Popularity counts the events of so many days before the request time.
    popular_days: Annotated[int, Field(gt=0)]
    # Items of the ALS model, at most.
    als_items: Annotated[int, Field(ge=0)]
    # Width of a factor.
    als_rank: Annotated[int, Field(gt=0)]
    # Rounds of the fit.
    als_iterations: Annotated[int, Field(gt=0)]
    # As in Spark's ALS (regParam).
    als_regularization: Annotated[float, Field(ge=0)]
    # Confidence in a repeated event, as in Spark's ALS (alpha).
    als_alpha: Annotated[float, Field(gt=0)]
    als_min_item_events: Annotated[int, Field(ge=1)]
    als_blocks: Annotated[int, Field(ge=1)]
    # Of the fit.
    seed: int


class ImpressionsConfig(Section):
    """Labelled candidates of past dates, for training."""

    # Share of a date's users that is kept, by a seeded hash.
    user_rate: Annotated[float, Field(gt=0, le=1)]
    # Of those, the share that is kept of users without any label; one kept stands for those left out, by its weight.
    unlabelled_user_rate: Annotated[float, Field(gt=0, le=1)]
    # That many past dates, `step_days` apart; the last label window closes at the request time of --ds.
    dates: Annotated[int, Field(ge=2)]
    # Days between two dates.
    step_days: Annotated[int, Field(gt=0)]
    # Share of the unlabelled candidates that is kept; loss and NE are corrected for it.
    negative_rate: Annotated[float, Field(gt=0, le=1)]
    # Items outside the candidates, per request, as extra negatives.
    unexposed_items: Annotated[int, Field(ge=0)]
    # Of the draws of users, candidates and extra negatives.
    seed: int


class TowersConfig(Section):
    """What every model has: two towers."""

    # Width of user and item vectors.
    width: Annotated[int, Field(gt=0)]
    # Widths of the embeddings of an item's id, and of each categorical feature of items and of users; 0: the model is
    # not told. What tells one item from another also lets a model learn by heart what sold in the training weeks.
    id_width: Annotated[int, Field(ge=0)]
    # As id_width, of each categorical feature of items.
    category_width: Annotated[int, Field(ge=0)]
    # As id_width, of each categorical feature of users.
    user_category_width: Annotated[int, Field(ge=0)]
    # In training.
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    # Log-spaced buckets of an event's age.
    time_buckets: Annotated[int, Field(ge=3)]


class TwoTowerConfig(TowersConfig):
    """The baseline of both papers."""

    # Which model this is.
    name: Literal["two_tower"] = "two_tower"


class GesrConfig(TowersConfig):
    """GESR: the two towers, hard matching, target attention, cross attention and gating."""

    # Which model this is.
    name: Literal["gesr"] = "gesr"
    # Of target attention; 0: without it.
    attention_layers: Annotated[int, Field(ge=0)]
    # Of each of these layers.
    attention_heads: Annotated[int, Field(gt=0)]
    # More equal values than that count as that many.
    match_cap: Annotated[int, Field(gt=0)]
    # How far apart pairs stand in the table of counts: match_cap + 1, or the published match_cap.
    match_offset: Literal["padded", "literal"] = "padded"
    # Width of an embedded count; 0: without hard matching.
    match_width: Annotated[int, Field(ge=0)]
    # Hidden width of the gates and of their logits.
    gate_width: Annotated[int, Field(gt=0)]
    # False: one secondary logit over everything, without gates.
    gating: bool = True
    # Width of a feature's token in cross attention; 0: without it.
    cross_width: Annotated[int, Field(ge=0)] = 0
    # Of cross attention.
    cross_heads: Annotated[int, Field(gt=0)] = 1

    @model_validator(mode="after")
    def _heads_divide_widths(self) -> GesrConfig:
        for width, heads in (("width", "attention_heads"), ("cross_width", "cross_heads")):
            if getattr(self, width) % getattr(self, heads):
                raise ValueError(f"{width} {getattr(self, width)} is not a multiple of {heads} {getattr(self, heads)}")
        return self


class TarqConfig(TowersConfig):
    """TARQ: two towers with attention, and target attention through the codes of items."""

    # Which model this is.
    name: Literal["tarq"] = "tarq"
    # Of the attention of the towers and of the codes.
    heads: Annotated[int, Field(gt=0)]
    # Codebooks, and codes in each: worth it while levels * codes stays below the candidates of a request.
    levels: Annotated[int, Field(gt=0)]
    # Codes in each codebook.
    codes: Annotated[int, Field(gt=1)]
    # Hidden width of the head over a candidate's sum.
    head_width: Annotated[int, Field(gt=0)]
    # Whose logit is served: `student` is TARQ; its teacher and its bare towers are there to compare it with.
    serves: Literal["student", "teacher", "backbone"] = "student"
    # Weight in the loss of the teacher's own logit.
    teacher_weight: Annotated[float, Field(ge=0)] = 1.0
    # Weight in the loss by which the student learns what the teacher found.
    reconstruction_weight: Annotated[float, Field(ge=0)] = 1.0
    # Weight in the loss of the codebook alignment.
    alignment_weight: Annotated[float, Field(ge=0)] = 1.0
    # Weight in the loss that moves codes to the latents.
    codebook_weight: Annotated[float, Field(ge=0)] = 1.0
    # Weight in the loss that moves latents to their codes.
    commitment_weight: Annotated[float, Field(ge=0)] = 0.25
    # How much an item's codes must tell of it; at 0 all items come to have the same.
    autoencoder_weight: Annotated[float, Field(ge=0)] = 1.0
    # 1 in the paper's code: wide vectors then have near one-hot shares.
    alignment_temperature: Annotated[float, Field(gt=0)] = 1.0
    # Share of the training steps before codebooks are initialised from the items' latents.
    warm_up_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    # Move codes that no item has to where items are badly served.
    revive: bool = True

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> TarqConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self


AnyModelConfig = TwoTowerConfig | GesrConfig | TarqConfig
ModelConfig = Annotated[AnyModelConfig, Field(discriminator="name")]


class TrainingConfig(Section):
    """How `jobs/train.py` trains."""

    # A key of `models`; --model names another.
    model: Identifier
    reader: Literal["arrow", "petastorm"]
    # Passes over the training dates, at most.
    epochs: Annotated[int, Field(gt=0)]
    patience: Annotated[int, Field(gt=0)]
    # Requests of a step.
    batch_requests: Annotated[int, Field(gt=0)]
    # Of AdamW.
    learning_rate: Annotated[float, Field(gt=0)]
    # Share of learning_rate at which the validation date, the newest there is, is learned at the end; 0: not at all.
    catch_up_rate: Annotated[float, Field(ge=0, le=1)]
    # Of AdamW.
    weight_decay: Annotated[float, Field(ge=0)]
    # Weight in the loss of the extra negatives that no retrieval proposed.
    unexposed_weight: Annotated[float, Field(ge=0)]
    # Of weights, order and dropout.
    seed: int
    # Of each process; 0: all cores, shared among the processes.
    threads: Annotated[int, Field(ge=0)]
    # bf16: the forward pass in bfloat16 (autocast); losses, weights and validation stay fp32.
    precision: Literal["fp32", "bf16"]
    device: Literal["cpu", "cuda", "auto"]
    # Data-parallel processes, started by Spark's TorchDistributor where there are several.
    processes: Annotated[int, Field(ge=1)]
    # None: no MLflow. The tracking URI is MLflow's own default (MLFLOW_TRACKING_URI) where none is given.
    mlflow_experiment: str | None = None
    # The server, where it is not MLflow's own default.
    mlflow_tracking_uri: str | None = None
    # The registered model that every trained checkpoint becomes a version of.
    mlflow_model: Annotated[str, Field(pattern=r"^[^/:@]+$")] | None = None

    @model_validator(mode="after")
    def _what_is_for_mlflow_has_an_experiment(self) -> TrainingConfig:
        for key in ("mlflow_tracking_uri", "mlflow_model"):
            if getattr(self, key) is not None and self.mlflow_experiment is None:
                raise ValueError(f"{key} is set, but mlflow_experiment, which switches MLflow on, is not")
        return self


class ScoringConfig(Section):
    """How `jobs/score_daily.py` scores."""

    # How many candidates of a user are published.
    top_k: Annotated[int, Field(gt=0)]
    # Fixed parts of the users: units of progress and resume.
    shards: Annotated[int, Field(gt=0)]
    # Shards that one Spark job works on; 0: twice the task slots. Execution only, no effect on any score.
    shards_per_wave: Annotated[int, Field(ge=0)]
    # A user with more becomes several requests.
    max_candidates_per_request: Annotated[int, Field(gt=0)]
    # auto: what suits the workers' device, decided once per run (runtime/device.py) and recorded.
    batch_pairs: Literal["auto"] | Annotated[int, Field(gt=0)]
    # Bytes that a micro-batch may take, as they are counted beforehand.
    batch_bytes: Literal["auto"] | Annotated[int, Field(gt=0)]
    # Item states up to this size are kept on the device; larger ones are gathered from host memory.
    item_table_bytes: Literal["auto"] | Annotated[int, Field(ge=0)]
    # Python workers that share a GPU; each has an equal share of its memory.
    workers_per_gpu: Annotated[int, Field(gt=0)]
    # How long to wait for the first executor; one that asks for a GPU which no worker has never comes.
    executor_wait_s: Annotated[float, Field(gt=0)]
    # Requests that are cut into micro-batches together; part of what makes scores repeat.
    plan_window_requests: Annotated[int, Field(gt=0)]
    history_buckets: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    # As history_buckets.
    candidate_buckets: Annotated[list[Annotated[int, Field(gt=0)]], Field(min_length=1)]
    transport: Literal["arrow", "pandas_udf"]
    # auto: a GPU where the worker sees one.
    device: Literal["cpu", "cuda", "auto"]
    # Of torch, in each Python worker.
    threads_per_worker: Annotated[int, Field(gt=0)]
    # The model's form; whatever is not fp32 and uncompiled is tried on requests of the day first (runtime/trial.py).
    precision: Literal["auto", "fp32", "bf16", "fp8"]
    # on: torch.compile; graphs: CUDA graphs too; auto: the fastest form, after trials, that keeps least_overlap.
    compile: Literal["auto", "off", "on", "graphs"]
    # Share of the best K in fp32 that must be among the best K in the form that is chosen, else the run is refused.
    least_overlap: Annotated[float, Field(ge=0, le=1)]
    output_files: Annotated[int, Field(gt=0)]

    @field_validator("compile", mode="before")
    @classmethod
    def _takes_yaml_at_its_word(cls, value: Any) -> Any:
        # `on` and `off` are booleans to YAML.
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value

    @field_validator("history_buckets", "candidate_buckets")
    @classmethod
    def _ascend(cls, buckets: list[int]) -> list[int]:
        if buckets != sorted(set(buckets)):
            raise ValueError(f"{buckets} do not ascend")
        return buckets


class GateConfig(Section):
    """What must hold before a `ds` is published; `score_daily --accept KEY` overrules one of these for one run."""

    # Of the candidates.
    max_quarantined_share: Annotated[float, Field(ge=0, le=1)]
    # Of any published score.
    max_abs_score: Annotated[float, Field(gt=0)]
    # Of the candidates: those that are no items of the catalogue.
    max_unknown_share: Annotated[float, Field(ge=0, le=1)]
    # Of the users.
    max_empty_history_share: Annotated[float, Field(ge=0, le=1)]
    # Population stability index of the scores against the newest earlier ds of the same checkpoint.
    max_score_psi: Annotated[float, Field(gt=0)]


class RetentionConfig(Section):
    """How long what a replay needs is kept."""

    # Delta's log and removed files of the tables that the jobs create.
    replay_days: Annotated[int, Field(ge=1)]
    # Rows of the ledger that maintain.py leaves; what stands published keeps its rows.
    ledger_days: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _the_ledger_outlives_replays(self) -> RetentionConfig:
        if self.ledger_days < self.replay_days:
            raise ValueError(
                f"ledger_days {self.ledger_days} is less than replay_days {self.replay_days}: a replay reads the ledger"
            )
        return self


class SegmentsConfig(Section):
    """Parts of the users and of the pairs, of which every metric is measured as well."""

    # Where a new band of history lengths (events before the request time) begins: [1, 10] gives 0, 1-9, 10+.
    history_length: list[Annotated[int, Field(gt=0)]] = []
    # A segment per retrieval source.
    source: bool = False
    # Bands of items, from the most popular on: the share of all popularity that a band ends at; the rest is `tail`.
    popularity: dict[Identifier, Annotated[float, Field(gt=0, lt=1)]] = {}
    # Columns of `users`; a segment per value.
    user: list[Identifier] = []

    @model_validator(mode="after")
    def _ascend(self) -> SegmentsConfig:
        for key, values in (("history_length", self.history_length), ("popularity", [*self.popularity.values()])):
            if list(values) != sorted(set(values)):
                raise ValueError(f"evaluation.segments.{key}: {list(values)} do not ascend")
        if "tail" in self.popularity:
            raise ValueError("evaluation.segments.popularity: `tail` is what is left after the other bands")
        return self


_MEASURE_AT_K = re.compile(r"([a-z_]+)@([1-9][0-9]*)")


class EvaluationConfig(Section):
    """Offline metrics of a published `ds`."""

    # Metrics look at the first so many.
    ks: Annotated[list[Annotated[int, Field(gt=0)]], Field(min_length=1)]
    # The ordering `popularity` counts the users of so many days before the request time.
    popularity_days: Annotated[int, Field(gt=0)]
    # Of the ordering `random`.
    seed: int
    # Repeat every metric without the most bought item of the label window (a promotion can rule a week).
    without_top_item: bool
    segments: SegmentsConfig
    # How often users are drawn anew for the intervals.
    replicates: Annotated[int, Field(ge=20)]
    # Of the calibration curve.
    calibration_bins: Annotated[int, Field(ge=2)]
    # Scores are compared with those of the ds so many days before, where they are published.
    drift_days: list[Annotated[int, Field(gt=0)]]
    # A table (ds, user_id, item_id) of what the late ranker took of the published; null: not measured.
    ranker_picks: TableConfig | None = None
    # What promote.py decides by: a metric and its cut.
    promote_by: str
    # The segment that it decides on.
    promote_segment: str

    @property
    def promotion_metric(self) -> tuple[str, int]:
        """The metric and the cut that `promote_by` names."""
        metric, _, k = self.promote_by.partition("@")
        return metric, int(k)

    @model_validator(mode="after")
    def _promotes_by_what_is_measured(self) -> EvaluationConfig:
        known = ("ndcg", "recall", "mrr", "ndcg_of_retrieved", "recall_of_retrieved")
        match = _MEASURE_AT_K.fullmatch(self.promote_by)
        if match is None or match[1] not in known:
            raise ValueError(
                f"promote_by is {self.promote_by!r}, expected METRIC@K with a metric of {', '.join(known)}"
            )
        return self

    @model_validator(mode="after")
    def _picks_are_somewhere(self) -> EvaluationConfig:
        if self.ranker_picks is not None and self.ranker_picks.location is None:
            raise ValueError("ranker_picks has no location")
        return self


class Config(Section):
    """The resolved configuration of one job."""

    tables: TablesConfig
    storage: StorageConfig
    features: FeaturesConfig
    labels: LabelsConfig
    histories: HistoriesConfig
    candidates: CandidatesConfig
    impressions: ImpressionsConfig
    models: dict[Identifier, ModelConfig]
    training: TrainingConfig
    scoring: ScoringConfig
    gate: GateConfig
    retention: RetentionConfig
    evaluation: EvaluationConfig
    # Verbatim Spark keys, for a session that the job starts itself.
    spark: dict[str, str | int | float | bool]

    @model_validator(mode="after")
    def _buckets_hold_a_history(self) -> Config:
        # Training reads whole histories: what scoring cut off would be scored otherwise than it was trained.
        longest, max_events = self.scoring.history_buckets[-1], self.histories.max_events
        if longest < max_events:
            raise ValueError(f"scoring.history_buckets end at {longest}, before histories.max_events ({max_events})")
        return self

    @model_validator(mode="after")
    def _training_names_a_model(self) -> Config:
        if self.training.model not in self.models:
            raise ValueError(
                f"training.model is {self.training.model!r}, which is none of {sorted(self.models)}"
                f"{_did_you_mean(self.training.model, list(self.models))}"
            )
        return self

    def table(self, role: Role | str, *, target: str | None = None) -> TableRef:
        """Resolve a role; `target` is a second scores table's role-like name (`--target scores_challenger`)."""
        role_name = Role(role).value
        entry: TableConfig = getattr(self.tables, role_name)
        location = entry.location or f"{self.tables.root}/{role_name}"
        location = location.rstrip("/")
        if target is not None and target != role_name:
            if not _IDENTIFIER.fullmatch(target):
                raise ConfigurationError(f"--target {target!r} is not a plain name (letters, digits, underscores)")
            head, separator, _ = location.rpartition("/" if "/" in location else ".")
            role_name, location = target, f"{head}{separator}{target}"
        keep_days = self.retention.replay_days
        return TableRef(role_name, location=_absolute(location), columns=dict(entry.columns), keep_days=keep_days)

    def ranker_picks(self) -> TableRef | None:
        """The table of what the late ranker took, where one is named."""
        entry = self.evaluation.ranker_picks
        if entry is None or entry.location is None:
            return None
        return TableRef("evaluation.ranker_picks", _absolute(entry.location.rstrip("/")), dict(entry.columns))

    def folder(self, name: Literal["checkpoints", "item_states", "training_sets", "reports"]) -> Path:
        """An absolute folder of `storage`."""
        location = _absolute(f"{getattr(self.storage, name)}/")
        return _local_path(location) or Path(location)

    def scoring_settings(self) -> dict[str, Any]:
        """Every setting that can change a published row, as JSON has it; those of execution alone are left out."""
        sections = self.model_dump(mode="json", include={"features", "labels", "histories", "scoring"})
        for execution_only in ("shards_per_wave", "transport", "output_files", "executor_wait_s"):
            sections["scoring"].pop(execution_only)
        return sections

    def scoring_hash(self) -> str:
        """SHA-256 of `scoring_settings`."""
        return hashlib.sha256(json.dumps(self.scoring_settings(), sort_keys=True).encode()).hexdigest()

    def with_scoring_settings(self, recorded: Mapping[str, Any]) -> Config:
        """Return this configuration with the scoring settings of another run, to repeat it.

        Raises:
            ConfigurationError: this version of the code does not know one of them any more.
        """
        merged: dict[str, Any] = self.model_dump(mode="json")
        for section, values in recorded.items():
            merged[section] = {**merged[section], **values}
        try:
            return Config.model_validate(merged)
        except ValidationError as err:
            lines = "; ".join(_explain(error) for error in err.errors())
            raise ConfigurationError(f"the settings of that run are none of this version's: {lines}") from err


def _described(pair: HardMatch) -> str:
    narrowed = [f"window_days {pair.window_days}"] if pair.window_days else []
    narrowed += [f"actions {sorted(set(pair.actions))}"] if pair.actions else []
    return " ".join([f"hard_match {pair.history} with {pair.candidate}", *narrowed])


def _require_distinct(names: Sequence[str]) -> None:
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ValueError(f"declared twice: {', '.join(doubled)}")


def load_config(env: str, *, overrides: Sequence[str] = (), conf_dir: Path = CONF_DIR) -> Config:
    """Read and validate the configuration of `env`.

    Args:
        env: a folder under `conf_dir`, such as `local` or `prod`; or several, separated by commas: the later wins.
        overrides: `section.key=value` strings; the value is YAML.
        conf_dir: the folder that holds `base/` and one folder per environment.

    Raises:
        ConfigurationError: an unknown environment, unreadable YAML or any invalid key, all of them in one message.
    """
    merged: dict[str, Any] = {}
    for folder in (conf_dir / "base", *(_environment_folder(conf_dir, name) for name in env.split(","))):
        for path in sorted(folder.glob("*.yaml")):
            _merge(merged, {path.stem: _read_yaml(path)})
    for override in overrides:
        _merge(merged, _parse_override(override))
    try:
        return Config.model_validate(merged)
    except ValidationError as err:
        lines = [_explain(error) for error in err.errors()]
        where = f"{len(lines)} configuration error{'s' if len(lines) > 1 else ''} (env {env!r}, {conf_dir})"
        raise ConfigurationError("\n  ".join([where + ":", *lines])) from err


def _environment_folder(conf_dir: Path, env: str) -> Path:
    known = sorted(p.name for p in conf_dir.glob("*") if p.is_dir() and p.name != "base")
    if env not in known:
        raise ConfigurationError(f"unknown --env {env!r}; {conf_dir} has {known}{_did_you_mean(env, known)}")
    return conf_dir / env


def _read_yaml(path: Path) -> Any:
    try:
        return _load_yaml(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, ValueError) as err:
        raise ConfigurationError(f"{path} is not valid YAML: {err}") from err


def _load_yaml(text: str) -> Any:
    """Read YAML; of a date that the calendar lacks, or of a broken encoding, PyYAML lets `ValueError` through."""
    try:
        value = yaml.safe_load(text)
        # An alias may stand within what it names: JSON refuses that.
        json.dumps(value, default=str, skipkeys=True)
        return value
    except RecursionError as err:
        raise ValueError("it is nested too deeply") from err


def _parse_override(override: str) -> dict[str, Any]:
    key, separator, text = override.partition("=")
    if not separator or not all(key.split(".")):
        raise ConfigurationError(f"--set {override!r}: expected section.key=value, such as scoring.top_k=50")
    try:
        value: Any = _load_yaml(text)
    except (yaml.YAMLError, ValueError) as err:
        raise ConfigurationError(f"--set {override!r}: the value is not valid YAML") from err
    # Spark's own keys hold dots: everything after `spark.` is one key.
    parts = key.split(".", 1) if key.startswith("spark.") else key.split(".")
    for part in reversed(parts):
        value = {part: value}
    return dict(value)


def _merge(into: dict[str, Any], other: Mapping[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


def _absolute(location: str) -> str:
    """Anchor a relative folder at the project; names and URIs pass unchanged."""
    if "/" not in location or location.startswith(("/", "dbfs:", "file:")) or "://" in location:
        return location
    return str(PROJECT_ROOT / location)


def _local_path(location: str) -> Path | None:
    if location.startswith("file:"):
        return Path("/" + location.removeprefix("file:").lstrip("/"))
    return Path(location) if location.startswith("/") else None


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def _explain(error: Any) -> str:
    # pydantic puts the discriminator's tag (models.mine.gesr.width) into the path of a tagged section.
    location = [part for place, part in enumerate(error["loc"]) if not (place == 2 and error["loc"][0] == "models")]
    key = ".".join(str(part) for part in location)
    if error["type"] == "extra_forbidden":
        known = _known_keys(error["loc"][:-1])
        return f"unknown key {key!r}{_did_you_mean(str(error['loc'][-1]), known) or f'; known keys: {known}'}"
    if error["type"] == "missing":
        return f"missing key {key!r}"
    message = error["msg"].removeprefix("Value error, ")
    if key.startswith("spark."):
        # A value of Spark's may be a password.
        return f"{key}: {message}"
    return (
        f"{key}: {message} (got {error['input']!r})"
        if error["type"] != "value_error"
        else f"{key or 'conf'}: {message}"
    )


def _known_keys(location: Sequence[Any]) -> list[str]:
    """The keys that the section at `location` (pydantic's error path) may have."""
    current: Any = Config
    for part in location:
        if isinstance(current, type) and issubclass(current, BaseModel):
            if part in current.model_fields:
                current = current.model_fields[part].annotation
            continue
        sections = _sections_in(current)
        tagged = [s for s in sections if s.model_fields.get("name") and s.model_fields["name"].default == part]
        current = tagged[0] if tagged else (sections[0] if len(sections) == 1 else current)
    sections = _sections_in(current)
    return sorted({name for section in sections for name in section.model_fields})


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for argument in get_args(annotation) for section in _sections_in(argument)]
