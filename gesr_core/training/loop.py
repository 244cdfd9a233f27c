"""Train a model: the three functions that serving calls, cross entropy per task, early stopping. Driver only; no JVM.

The same data, settings, seed and number of threads give the same weights, bit for bit, on one machine's CPU.

Legend: B requests, T history positions, N candidates, R rows of the item table, U distinct rows of a batch, S tasks.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, nn
from tqdm import tqdm

from gesr_core.model.build import LearnsMore
from gesr_core.model.inputs import ItemFeatures, ItemState
from gesr_core.runtime.collate import JaggedRequests
from gesr_core.training.data import Batch, TrainingItems, decode_window, make_batch, plan_batches, windows
from gesr_core.training.features import FeatureSpace
from gesr_core.training.measures import Measures, task_losses
from gesr_core.training.readers import RequestReader

log = logging.getLogger("train")

# About 1.5 kB each once decoded: a window stays near 100 MB.
WINDOW_REQUESTS: Final = 65_536
WARM_UP_SHARE: Final = 0.05
FINAL_RATE_SHARE: Final = 0.05
_LOG_EVERY_S: Final = 10.0


@dataclass(frozen=True)
class TrainingSettings:
    """How to train; `loss_weights` and `score_weights` per task, in the feature space's order. 0 threads: all cores.

    `catch_up_rate` is the share of the learning rate at which the validation requests are learned at last; 0: never.
    """

    epochs: int
    patience: int
    batch_requests: int
    learning_rate: float
    catch_up_rate: float
    weight_decay: float
    seed: int
    threads: int
    unexposed_weight: float
    loss_weights: tuple[float, ...]
    score_weights: tuple[float, ...]


@dataclass(frozen=True)
class TrainingResult:
    """The weights, what was measured after each epoch, and how long each took.

    The weights are the best epoch's, or, where `catch_up_loss` is a number, what learning the validation requests made
    of them: nothing was measured of those.
    """

    weights: Mapping[str, Tensor]
    catch_up_loss: float | None
    best_epoch: int
    epochs: tuple[Mapping[str, Any], ...]
    epoch_s: tuple[float, ...]


@dataclass(frozen=True)
class TrainingData:
    """Where requests come from, and what they refer to; `newest_items` are those of the newest training date."""

    training: RequestReader
    validation: RequestReader
    items: TrainingItems
    newest_items: ItemFeatures
    features: FeatureSpace


def train(model: nn.Module, data: TrainingData, *, settings: TrainingSettings) -> TrainingResult:
    """Train until the epochs are over or `patience` of them brought no better validation NE (of the score's tasks).

    With a `catch_up_rate`, the best epoch's weights then learn the validation requests, once: they are the newest there
    are, and what changed since the training dates (a promotion, say) shows in them alone. Ours.
    """
    rule = _Rule.of(model, settings, requests=settings.epochs * data.training.rows)
    epochs: list[Mapping[str, Any]] = []
    seconds: list[float] = []
    best_weights, best_epoch, best_ne = model.state_dict(), 0, math.inf
    with _threads(settings.threads):
        for epoch in range(1, settings.epochs + 1):
            started = time.monotonic()
            name = f"epoch {epoch} of {settings.epochs}"
            loss = _train_epoch(model, data, reader=data.training, rule=rule, settings=settings, epoch=epoch, name=name)
            measured = {"epoch": epoch, "loss": loss, **validate(model, data, settings=settings)}
            measured |= _report(model, data)
            epochs.append(measured)
            seconds.append(time.monotonic() - started)
            log.info("%s: %s (%.0f s)", name, _in_words(measured), seconds[-1])
            if measured["ne"] < best_ne:
                best_weights, best_epoch, best_ne = copy.deepcopy(model.state_dict()), epoch, measured["ne"]
            elif epoch - best_epoch >= settings.patience:
                log.info("no better validation NE for %d epochs: stopping", epoch - best_epoch)
                break
        catch_up_loss = None
        if settings.catch_up_rate:
            model.load_state_dict(best_weights)
            catch_up_loss = _catch_up(model, data, settings=settings)
            best_weights = model.state_dict()
    return TrainingResult(best_weights, catch_up_loss, best_epoch, tuple(epochs), tuple(seconds))


def _catch_up(model: nn.Module, data: TrainingData, *, settings: TrainingSettings) -> float:
    """Learn the validation requests in one pass, at a smaller rate; return the mean loss."""
    slower = replace(settings, learning_rate=settings.learning_rate * settings.catch_up_rate)
    rule = _Rule.of(model, slower, requests=data.validation.rows, after_the_epochs=True)
    epoch = settings.epochs + 1
    loss = _train_epoch(
        model, data, reader=data.validation, rule=rule, settings=slower, epoch=epoch, name="catching up"
    )
    log.info("caught up with the validation date: loss %.4f", loss)
    return loss


def logits_of(model: Any, batch: Batch, items: TrainingItems) -> Tensor:
    """Return logits_BNS of a batch."""
    return model.score(*encode(model, batch, items))


def encode(model: Any, batch: Batch, items: TrainingItems) -> tuple[Any, ItemState]:
    """Return the states of a batch's requests and of its candidates [B, N, ...]; each distinct item is encoded once."""
    history_BT, candidate_BN = batch.requests.history.row_BT, batch.requests.candidate_row_BN
    rows = torch.cat([history_BT.flatten(), candidate_BN.flatten()])
    distinct_U, place = torch.unique(rows.clamp_min(0), return_inverse=True)
    place = torch.where(rows >= 0, place, -1)
    states = model.encode_items(items.features.take(distinct_U))
    history_items = states.take(place[: history_BT.numel()].view_as(history_BT))
    candidates = states.take(place[history_BT.numel() :].view_as(candidate_BN))
    return model.encode_user(batch.requests.history, history_items, batch.requests.user), candidates


def loss_of(model: Any, batch: Batch, data: TrainingData, *, settings: TrainingSettings) -> Tensor:
    """Return the loss of a batch: that of its logits, and what a model that learns more adds to it."""

    def task_loss(logits_BNS: Tensor) -> Tensor:
        losses_S = task_losses(
            logits_BNS,
            batch.labels_BNS,
            rate_BN=batch.rate_BN,
            weight_BN=batch.weight_BN(unexposed=settings.unexposed_weight),
        )
        return (losses_S * torch.tensor(settings.loss_weights)).sum()

    state, candidates = encode(model, batch, data.items)
    loss = task_loss(model.score(state, candidates))
    if isinstance(model, LearnsMore):
        pairs = max(1.0, float(batch.valid_BN.sum()))
        loss = loss + model.extra_loss(state, candidates, task_loss=task_loss, valid_BN=batch.valid_BN, pairs=pairs)
    return loss


def rate_share(step: int, *, steps: int) -> float:
    """Return the share of the learning rate at a step: a linear warm-up, then a linear fall (ours)."""
    warm_up = max(1, round(WARM_UP_SHARE * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    left = (steps - step) / max(1, steps - warm_up)
    return max(FINAL_RATE_SHARE, left)


@torch.inference_mode()
def validate(model: nn.Module, data: TrainingData, *, settings: TrainingSettings) -> dict[str, Any]:
    """Return validation NE and AUC over exposed pairs: per task, and NE weighted as the tasks are in the score."""
    model.eval()
    measures = Measures()
    for jagged in _decoded(data.validation, data):
        plan = plan_batches(
            jagged, batch_requests=settings.batch_requests, max_history=data.features.max_history, generator=None
        )
        for select in plan:
            batch = make_batch(jagged, select, features=data.features)
            logits_BNS = logits_of(model, batch, data.items)
            kept_BN = batch.valid_BN & batch.exposed_BN
            measures.add(logits_BNS, batch.labels_BNS, rate_BN=batch.rate_BN, kept_BN=kept_BN)
    ne, auc = measures.results()
    weights = settings.score_weights
    return {
        "ne": sum(w * value for w, value in zip(weights, ne, strict=True) if w) / sum(weights),
        **{f"ne_{task}": value for task, value in zip(data.features.tasks, ne, strict=True)},
        **{f"auc_{task}": value for task, value in zip(data.features.tasks, auc, strict=True)},
    }


def _train_epoch(
    model: nn.Module,
    data: TrainingData,
    *,
    reader: RequestReader,
    rule: _Rule,
    settings: TrainingSettings,
    epoch: int,
    name: str,
) -> float:
    """Take one pass over the reader's requests; return the mean loss per batch."""
    model.train()
    total, batches = 0.0, 0
    with _Progress(name, requests=reader.rows) as progress:
        for number, jagged in enumerate(_decoded(reader, data)):
            # Dropout draws from the global generator: each window starts from a seed of its own.
            seed = settings.seed + 1_000_003 * epoch + 7_919 * number
            torch.manual_seed(seed)
            plan = plan_batches(
                jagged,
                batch_requests=settings.batch_requests,
                max_history=data.features.max_history,
                generator=torch.Generator().manual_seed(seed),
            )
            for select in plan:
                _before_step(model, data, rule=rule, settings=settings)
                loss = loss_of(model, make_batch(jagged, select, features=data.features), data, settings=settings)
                rule.step(loss)
                total, batches = total + loss.item(), batches + 1
                progress.advance(len(select), loss=total / batches)
    return total / max(1, batches)


def _before_step(model: nn.Module, data: TrainingData, *, rule: _Rule, settings: TrainingSettings) -> None:
    """Let a model that learns more prepare its step, from its own random state: dropout's draws stay as they are."""
    if isinstance(model, LearnsMore):
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed + 15_485_863 * (rule.done + 1))
            model.before_step(share_done=rule.share_done, items=data.newest_items)


def _report(model: nn.Module, data: TrainingData) -> dict[str, float]:
    """Return what a model that learns more says of itself."""
    if not isinstance(model, LearnsMore):
        return {}
    model.eval()
    with torch.inference_mode():
        return model.report(data.newest_items)


def _decoded(reader: RequestReader, data: TrainingData) -> Iterator[JaggedRequests]:
    for window in windows(reader.batches(), rows=WINDOW_REQUESTS):
        yield decode_window(window, items=data.items, features=data.features)


@dataclass
class _Rule:
    """How weights follow from gradients: AdamW, whose rate rises and falls over a known number of steps.

    `done` counts the steps taken; in a pass that comes after the epochs, the share of all steps done is 1.
    """

    optimizer: torch.optim.Optimizer
    learning_rate: float
    steps: int
    after_the_epochs: bool
    done: int = 0

    @staticmethod
    def of(model: nn.Module, settings: TrainingSettings, *, requests: int, after_the_epochs: bool = False) -> _Rule:
        """Make a fresh one; what is no matrix (biases, norms, gates' weights) does not decay."""
        matrices = [p for p in model.parameters() if p.dim() > 1]
        others = [p for p in model.parameters() if p.dim() <= 1]
        groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)
        return _Rule(
            optimizer,
            learning_rate=settings.learning_rate,
            steps=math.ceil(requests / settings.batch_requests),
            after_the_epochs=after_the_epochs,
        )

    @property
    def share_done(self) -> float:
        """The share of all steps that is done; windows that do not divide by the batch make a few steps more."""
        return 1.0 if self.after_the_epochs else min(1.0, self.done / self.steps)

    def step(self, loss: Tensor) -> None:
        """Take one step down the gradient of `loss`."""
        self.optimizer.zero_grad()
        loss.backward()
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * rate_share(self.done, steps=self.steps)
        self.optimizer.step()
        self.done += 1


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.set_num_threads(count or before)
    # Several threads would add the gradients of one row in the order in which they arrive.
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.set_num_threads(before)


def _in_words(measured: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in measured.items() if name != "epoch")


class _Progress:
    """A bar on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, name: str, *, requests: int) -> None:
        self.name, self.requests, self.done = name, requests, 0
        self.bar = tqdm(total=requests, desc=name, unit="req", leave=False, disable=not sys.stderr.isatty())
        self.said_s = self.started_s = time.monotonic()

    def advance(self, requests: int, *, loss: float) -> None:
        """Count requests as done."""
        self.done += requests
        self.bar.update(requests)
        self.bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
        now_s = time.monotonic()
        if self.bar.disable and now_s - self.said_s >= _LOG_EVERY_S:
            self.said_s = now_s
            rate = self.done / (now_s - self.started_s)
            log.info(
                "%s: %d of %d requests, %.0f/s, loss %.4f, %.0f s left",
                self.name,
                self.done,
                self.requests,
                rate,
                loss,
                (self.requests - self.done) / rate,
            )

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
