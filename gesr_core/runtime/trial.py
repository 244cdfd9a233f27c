"""Try the forms in which a model can be run (forms.py) on some requests of the day, against fp32. No JVM.

What a form costs in time, and what it changes in the scores, is measured where the run's workers are, on what they will
score; the driver decides from it, once per run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa

from gesr_core.errors import ConfigurationError, InputError
from gesr_core.names import Col
from gesr_core.runtime.forms import EXACT, Form
from gesr_core.runtime.scorer import is_broken_device
from gesr_core.runtime.worker import ScoreShards, forget_loaded, task_scorer

# The first run of a form warms up: it compiles, and grows the caches.
_REPEATS: Final = 3
_ARROW: Final = {"str": pa.string(), "float": pa.float64(), "str | None": pa.string()}


@dataclass(frozen=True)
class Trial:
    """What a form came to on a sample of requests.

    `overlap` is the mean share of a user's best K candidates in fp32 that are among the best K in this form, over the
    users with more than K candidates; `score_difference` the largest difference of a score that both have. `seconds` is
    the fastest of some runs after a first, in which it is compiled. With an `error` the form cannot be run here.
    """

    precision: str
    compiled: str
    seconds: float = 0.0
    score_difference: float = 0.0
    overlap: float = 1.0
    error: str | None = None

    @property
    def form(self) -> Form:
        return Form(self.precision, self.compiled)  # type: ignore[arg-type]

    def __str__(self) -> str:
        """One line for the log."""
        if self.error is not None:
            return f"{self.form}: cannot be run here: {self.error}"
        return (
            f"{self.form}: {self.seconds:.3f} s, {self.overlap:.2%} of the best K the same, scores differ by "
            f"{self.score_difference:.2g} at most"
        )


TRIAL_TYPE: Final = (
    "precision string, compiled string, seconds double, score_difference double, overlap double, error string"
)


@dataclass(frozen=True)
class TryForms:
    """Maps the sorted request rows of a partition to one row per form, fp32 first."""

    task: ScoreShards
    forms: tuple[Form, ...]

    def __call__(self, batches: Iterator[pa.RecordBatch], *, gpu: str | None = None) -> Iterator[pa.RecordBatch]:
        """Score the requests in each form on the granted GPU."""
        rows = list(batches)
        if not sum(batch.num_rows for batch in rows):
            return
        trials = [asdict(trial) for trial in try_forms(self.task, self.forms, rows, gpu=gpu)]
        yield pa.RecordBatch.from_pylist(
            trials, schema=pa.schema([(name, _ARROW[str(f.type)]) for name, f in Trial.__dataclass_fields__.items()])
        )


def try_forms(
    task: ScoreShards, forms: Sequence[Form], rows: Sequence[pa.RecordBatch], *, gpu: str | None = None
) -> list[Trial]:
    """Return a trial of fp32 and of each form on these requests."""
    exact_s, exact = _timed(task, EXACT, rows, gpu=gpu)
    trials = [Trial(EXACT.precision, EXACT.compiled, exact_s)]
    for form in forms:
        if form == EXACT:
            continue
        try:
            seconds, found = _timed(task, form, rows, gpu=gpu)
        # Whatever a compiler or a device that lacks something has to say: it is reported, and nothing was scored yet.
        except Exception as err:
            if is_broken_device(err):
                raise
            trials.append(
                Trial(form.precision, form.compiled, error=f"{type(err).__name__}: {err}".split("\n")[0][:300])
            )
            continue
        difference, overlap = compare(exact, found, top_k=task.settings.top_k)
        if math.isfinite(difference):
            trials.append(Trial(form.precision, form.compiled, seconds, difference, overlap))
        else:
            trials.append(Trial(form.precision, form.compiled, error="scores that are not finite"))
    return trials


def compare(exact: Sequence[dict[str, Any]], found: Sequence[dict[str, Any]], *, top_k: int) -> tuple[float, float]:
    """Return the largest difference of scores, and the overlap, of score rows of the same users (see `Trial`)."""
    largest, overlaps = 0.0, []
    for before, after in zip(exact, found, strict=True):
        scores = {pair[Col.ITEM_ID]: pair[Col.SCORE] for pair in before[Col.RANKED]}
        others = {pair[Col.ITEM_ID]: pair[Col.SCORE] for pair in after[Col.RANKED]}
        both = scores.keys() & others.keys()
        differences = np.array([abs(scores[item] - others[item]) for item in both])
        # What is not finite differs without bound.
        largest = max(largest, float(np.where(np.isfinite(differences), differences, np.inf).max(initial=0.0)))
        if before[Col.CANDIDATES_SCORED] > top_k:
            overlaps.append(len(both) / len(scores))
    return largest, float(np.mean(overlaps)) if overlaps else 1.0


def choose_form(trials: Sequence[Trial], *, least_overlap: float, allowed: Sequence[Form]) -> Form:
    """Return the fastest of the allowed forms that can be run and keeps at least `least_overlap` of the best K.

    Raises:
        ConfigurationError: none does.
        InputError: nothing was tried, for there were no requests.
    """
    if not trials:
        raise InputError("no form of the model can be tried: the candidates that were sampled hold no request")
    kept = [t for t in trials if t.form in allowed and t.error is None and t.overlap >= least_overlap]
    if not kept:
        said = "; ".join(str(trial) for trial in trials if trial.form in allowed)
        raise ConfigurationError(
            f"no form that scoring.precision and scoring.compile allow keeps {least_overlap:.2%} of the best K "
            f"(scoring.least_overlap) here: {said}"
        )
    return min(kept, key=lambda trial: trial.seconds).form


def _timed(
    task: ScoreShards, form: Form, rows: Sequence[pa.RecordBatch], *, gpu: str | None
) -> tuple[float, list[dict[str, Any]]]:
    settings = replace(task.settings, precision=form.precision, compiled=form.compiled)
    in_form = replace(task, settings=settings, trace_folder=None)
    seconds, found = [], []
    try:
        for _ in range(1 + _REPEATS):
            scorer = task_scorer(in_form, gpu=gpu)
            started_s = time.perf_counter()
            scored = list(scorer.score(iter(rows)))
            seconds.append(time.perf_counter() - started_s)
            columns = [Col.RANKED, Col.CANDIDATES_SCORED]
            found = [row for batch in scored for row in batch.select(columns).to_pylist()]
    finally:
        # Micro-batches are sized for one model and its item states on the device, not for those of all forms.
        forget_loaded()
    return min(seconds[1:]), found
