"""The cells: what is measured on which data, with how many seeds, from which configuration. Runs anywhere.

A trained cell names a model section of the configuration and overrides of it, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from benchmarks.quality import ml_100k, ta_feng
from gesr_core.config import Config, load_config
from gesr_core.errors import ConfigurationError

BOTH: Final = (ta_feng.NAME, ml_100k.NAME)
SEEDS: Final = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Cell:
    """What is measured: a rival by name, or a section of `models` with overrides."""

    name: str
    kind: Literal["rival", "external", "trained"]
    seeds: int = 1
    model: str = ""
    overrides: tuple[str, ...] = ()
    data: tuple[str, ...] = BOTH
    # The task whose labels rank it; the first of the data unless named.
    task: str | None = None
    # Measured on the validation ds alone, which is then not learned.
    on_validation: bool = False
    # Overrides of what is served alone: the weights are those of the cell without them.
    serving: tuple[str, ...] = ()
    # A setting that `benchmarks.frontier` alone asks for.
    of_frontier: bool = False
    # One seed, one epoch, nothing tuned: does it run, not how good it is.
    quick: bool = False

    def quickly(self) -> Cell:
        """Return this cell as a quick run runs it."""
        return replace(self, seeds=1, quick=True)


class NotBuilt(Exception):
    """The configuration has no such model section, or no such switch."""


_NO_HARD: Final = "features.hard_match=[]"
_NO_TARGET: Final = "models.gesr.attention_layers=0"
_NO_CROSS: Final = "models.gesr.cross_width=0"
_NO_GATING: Final = "models.gesr.gating=false"


def _gesr(name: str, *overrides: str, seeds: int = 2) -> Cell:
    return Cell(name, "trained", seeds, "gesr", overrides)


def _newest(events: int) -> Cell:
    """gesr as it was trained, serving no more than the newest events of a history."""
    buckets = [bucket for bucket in (8, 16, 32) if bucket <= events]
    serving = (f"histories.max_events={events}", f"scoring.history_buckets={buckets}")
    return Cell(f"gesr_newest_{events}", "trained", 2, "gesr", data=(ta_feng.NAME,), serving=serving, of_frontier=True)


def _task_alone(task: str) -> Cell:
    """gesr that learns and ranks by one task; the other's labels still say which pairs were kept for certain."""
    weights = {name: float(name == task) for name in ("bought", "bought_high_spend")}
    tasks = [
        f"{{name: {name}, actions: [buy], loss_weight: {weight}, score_weight: {weight}{condition}}}"
        for (name, weight), condition in zip(weights.items(), ("", ", value_above: user_median"), strict=True)
    ]
    overrides = (f"labels.tasks=[{', '.join(tasks)}]",)
    return Cell(f"gesr_{task}_alone", "trained", 2, "gesr", overrides, data=(ta_feng.NAME,), task=task)


CELLS: Final[tuple[Cell, ...]] = (
    Cell("random", "rival"),
    Cell("popularity_7d", "rival"),
    Cell("popularity_28d", "rival"),
    Cell("retrieval_order", "rival"),
    # Items already rated are no candidates: on ratings there is nothing to count.
    Cell("personal_frequency", "rival", data=(ta_feng.NAME,)),
    Cell("tifu_knn", "rival", data=(ta_feng.NAME,)),
    Cell("ease", "external"),
    Cell("sasrec", "external", seeds=2),
    Cell("two_tower", "trained", 5, "two_tower"),
    _gesr("gesr", seeds=5),
    _gesr("gesr_hard_matching_alone", _NO_TARGET, _NO_CROSS, _NO_GATING),
    _gesr("gesr_target_attention_alone", _NO_HARD, _NO_CROSS, _NO_GATING),
    _gesr("gesr_cross_attention_alone", _NO_HARD, _NO_TARGET, _NO_GATING),
    _gesr("gesr_gating_alone", _NO_HARD, _NO_TARGET, _NO_CROSS),
    _gesr("gesr_without_hard_matching", _NO_HARD),
    _gesr("gesr_without_target_attention", _NO_TARGET),
    _gesr("gesr_without_cross_attention", _NO_CROSS),
    _gesr("gesr_without_gating", _NO_GATING),
    _task_alone("bought"),
    _task_alone("bought_high_spend"),
    Cell("tarq", "trained", 5, "tarq"),
    # The teacher that taught tarq, and not one trained by itself.
    Cell("tarq_teacher", "trained", 2, "tarq", serving=("models.tarq.serves=teacher",)),
    Cell("tarq_backbone", "trained", 2, "tarq", ("models.tarq.serves=backbone",)),
    # Revival of dead codes would hide what alignment does. Of the larger catalogue alone, for the time.
    Cell("tarq_alignment", "trained", 2, "tarq", ("models.tarq.revive=false",), data=(ta_feng.NAME,)),
    Cell(
        "tarq_no_alignment",
        "trained",
        2,
        "tarq",
        ("models.tarq.revive=false", "models.tarq.alignment_weight=0.0"),
        data=(ta_feng.NAME,),
    ),
    Cell(
        "gesr_two_layers",
        "trained",
        2,
        "gesr",
        ("models.gesr.attention_layers=2",),
        data=(ta_feng.NAME,),
        of_frontier=True,
    ),
    _newest(8),
    _newest(16),
    _newest(32),
)

# What every trained cell starts from (''), and each model on top of it.
TRAINING: Final[Mapping[str, tuple[str, ...]]] = {
    "": ("training.threads=1", "training.patience=1", "training.catch_up_rate=0.5"),
    # Wide enough not to be a straw man.
    "two_tower": ("models.two_tower.width=192",),
    # Whole: every part is on. One layer, not two: dozens of trainings are to fit the time.
    "gesr": ("models.gesr.cross_width=32", "models.gesr.attention_layers=1"),
}

# A model that is not told which item it is, nor its categories, cannot learn by heart what sold in the training weeks;
# which items a user knows already, hard matching still counts.
_UNTOLD: Final = ("models.{model}.id_width=0", "models.{model}.category_width=0")
# The search: every model is tried with each of these on the validation ds, once, and nothing else about it is tuned.
TRIALS: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    ta_feng.NAME: {
        "one_epoch": ("training.epochs=1",),
        "two_epochs": ("training.epochs=2",),
        "untold": ("training.epochs=1", *_UNTOLD),
        "untold_two_epochs": ("training.epochs=2", *_UNTOLD),
    },
    ml_100k.NAME: {
        "four_epochs": ("training.epochs=4", "training.batch_requests=8"),
        "twelve_epochs": ("training.epochs=12", "training.batch_requests=8", "training.patience=3"),
        "untold": ("training.epochs=4", "training.batch_requests=8", *_UNTOLD),
        "untold_twelve_epochs": ("training.epochs=12", "training.batch_requests=8", "training.patience=3", *_UNTOLD),
    },
}
MODELS: Final = ("two_tower", "gesr", "tarq")
# What `--search` found best for each model: the highest NDCG@10, in the mean of with and without the most bought item
# (benchmarks/results/quality_search.cpu.json), but for gesr on Ta Feng: two epochs of it untold were 0.0012 better, and
# the 25 trainings there would not fit the time. A model's variants are trained as the model is.
CHOSEN: Final[Mapping[str, Mapping[str, str]]] = {
    ta_feng.NAME: {"two_tower": "one_epoch", "gesr": "untold", "tarq": "one_epoch"},
    ml_100k.NAME: {"two_tower": "twelve_epochs", "gesr": "four_epochs", "tarq": "four_epochs"},
}
SEARCH: Final[tuple[Cell, ...]] = tuple(
    Cell(
        f"search_{model}_{trial}",
        "trained",
        1,
        model,
        (*overrides, "training.catch_up_rate=0"),
        data=(data,),
        on_validation=True,
    )
    for data, trials in TRIALS.items()
    for trial, overrides in trials.items()
    for model in MODELS
)
_DATA: Final[Mapping[str, Sequence[str]]] = {ta_feng.NAME: ta_feng.OVERRIDES, ml_100k.NAME: ml_100k.OVERRIDES}


def cell_config(cell: Cell, data: str, *, seed: int, served: bool = False) -> Config:
    """Return the configuration that a trained cell is trained from, or the one that it is `served` from.

    Raises:
        NotBuilt: its model section, or a switch that it sets, is not there.
    """
    # A trial brings its own.
    chosen = () if cell.on_validation else TRIALS[data].get(CHOSEN[data].get(cell.model, ""), ())
    overrides = [*_DATA[data], *TRAINING[""], *TRAINING.get(cell.model, ()), *chosen, *cell.overrides]
    overrides += cell.serving if served else ()
    overrides = [override.replace("{model}", cell.model) for override in overrides]
    overrides += [f"training.seed={seed}", f"training.model={cell.model}"]
    overrides += ["training.epochs=1"] if cell.quick else []
    try:
        return load_config("local", overrides=overrides)
    except ConfigurationError as err:
        if cell.model not in load_config("local").models or "unknown key" in str(err):
            raise NotBuilt(str(err)) from err
        raise
