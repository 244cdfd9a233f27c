"""Whether a challenger takes the champion's place, and how it is told. Driver only."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gesr_core.config import Config, EvaluationConfig
from gesr_core.dates import shift_ds
from gesr_core.errors import ConfigurationError, InputError
from gesr_core.metrics.ranking import Metric
from gesr_core.training.checkpoint import MANIFEST, load_checkpoint

CHAMPION: Final = "champion"


@dataclass(frozen=True)
class Trained:
    """A checkpoint and what it learned from: `known_until` is the first `ds` none of whose labels it has seen.

    The label window of a date begins at its request time and reaches `window_days` on.
    """

    name: str
    checkpoint_id: str
    train_dates: tuple[str, ...]
    validation_date: str
    known_until: str

    def is_in_sample(self, ds: str) -> bool:
        """Say whether labels of the `ds` may have been seen in training or validation."""
        return ds < self.known_until

    def describe(self, ds: str) -> str:
        """Return one line for the table."""
        mark = "IN-SAMPLE" if self.is_in_sample(ds) else "after both"
        return (
            f"{self.name}: trained on {self.train_dates[0]} to {self.train_dates[-1]}, validated on "
            f"{self.validation_date}, labels end before {self.known_until}: ds {ds} is {mark}"
        )


@dataclass(frozen=True)
class Decision:
    """Whether to promote, the number that decided it, and why in words."""

    promote: bool
    by: Metric
    reason: str


def find_trained(root: Path, checkpoint_id: str) -> Trained:
    """Read from a checkpoint's manifest which days it was trained and validated on.

    Args:
        root: the checkpoints folder.
        checkpoint_id: its id, as `scores.model_version` has it.

    Raises:
        InputError: it is not there, or its manifest does not say.
    """
    found = sorted(root.glob(f"*/{checkpoint_id}/{MANIFEST}"))
    if not found:
        raise InputError(
            f"checkpoint {checkpoint_id} is not in {root} (storage.checkpoints), so what it was trained on is not known"
        )
    checkpoint = load_checkpoint(found[0].parent)
    inputs = checkpoint.manifest.get("inputs", {})
    try:
        data, window_days = inputs["training_set"], inputs["configuration"]["labels"]["window_days"]
        train_dates, validation_date = tuple(data["train_dates"]), data["validation_date"]
    except KeyError as err:
        raise InputError(
            f"{found[0]} does not say what {checkpoint_id} was trained on (inputs has no {err}): train again"
        ) from err
    newest = max([*train_dates, validation_date])
    name = f"{checkpoint.model_name}/{checkpoint_id}"
    return Trained(name, checkpoint_id, train_dates, validation_date, shift_ds(newest, days=window_days))


def require_out_of_sample(ds: str, trained: Sequence[Trained]) -> None:
    """Refuse a `ds` that one of the checkpoints may have learned from.

    Raises:
        InputError: names the checkpoints, and the first `ds` that may decide.
    """
    seen = [one.name for one in trained if one.is_in_sample(ds)]
    if seen:
        since = max(one.known_until for one in trained)
        raise InputError(
            f"ds {ds} is in-sample for {' and '.join(seen)}: it cannot decide; compare on a ds from {since} on, "
            "whose label window is complete"
        )


def require_decidable(settings: EvaluationConfig) -> None:
    """Check that the metric that decides is measured.

    Raises:
        ConfigurationError: its cut is none of `evaluation.ks`.
    """
    _, k = settings.promotion_metric
    if k not in settings.ks:
        raise ConfigurationError(
            f"evaluation.promote_by is {settings.promote_by!r}, but evaluation.ks are {settings.ks}: name one of them"
        )


def decide(differences: Sequence[Metric], *, settings: EvaluationConfig) -> Decision:
    """Promote only where the whole interval of the metric's difference, challenger minus champion, lies above 0.

    Raises:
        InputError: that metric is not among the differences.
    """
    metric, k = settings.promotion_metric
    segment = settings.promote_segment
    named = [m for m in differences if m.metric == f"{metric}_difference" and m.k == k]
    found = next((m for m in named if m.segment == segment), None)
    if found is None:
        known = ", ".join(m.segment for m in named) or f"none: are fewer than {k} published?"
        raise InputError(f"{settings.promote_by} was not compared in segment {segment!r} (it was in {known})")
    number = f"{settings.promote_by} of {segment}: {found.value:+.5f}"
    if found.ci_low is None or found.ci_high is None:
        return Decision(False, found, f"{number}, of {found.n} users, too few for an interval")
    promote = found.ci_low > 0
    verdict = "above 0" if promote else "below 0" if found.ci_high < 0 else "not outside 0"
    interval = f"[{found.ci_low:+.5f}, {found.ci_high:+.5f}]"
    return Decision(promote, found, f"{number}, 95 % interval {interval} over {found.n:,} users, {verdict}")


def registered_model(config: Config) -> str | None:
    """Return the name of the registered model whose alias says who is champion; None where there is none."""
    name: str | None = getattr(config.training, "mlflow_model", None)
    return name


def name_champion(config: Config, trained: Trained) -> str:
    """Move the alias `champion` of the registered model to a checkpoint, and say what was done.

    Without a registered model nothing is moved: then it is the command line that names a champion.

    Raises:
        GesrError: the registry refuses, or does not answer.
    """
    model = registered_model(config)
    if model is None:
        return (
            "no alias was moved, for training.mlflow_model names no registered model. score_daily and export_items "
            "take the newest checkpoint of training.model, or what they are told: give them --checkpoint "
            f"{trained.name}"
        )
    # Only here: MLflow is an extra.
    registry = importlib.import_module("gesr_core.training.registry")
    registry.set_alias(config, alias=CHAMPION, checkpoint_id=trained.checkpoint_id)
    return f"models:/{model}@{CHAMPION} is {trained.name} now"
