"""Train a model: the three functions that serving calls, cross entropy per task, early stopping. No JVM.

Runs on the driver, or in each of several training processes. The same data, settings, seed, number of threads and of
processes give the same weights, bit for bit, on one machine's CPU; also when training was killed and resumed.

Legend: B requests, T history positions, N candidates, R rows of the item table, U distinct rows of a batch, S tasks.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from gesr_core.failpoints import reach
from gesr_core.model.build import LearnsMore
from gesr_core.model.inputs import ItemFeatures, ItemState
from gesr_core.runtime.allocator import keep_freed_memory
from gesr_core.runtime.collate import JaggedRequests
from gesr_core.training.data import Batch, TrainingItems, decode_window, make_batch, map_tensors, plan_batches, windows
from gesr_core.training.features import FeatureSpace
from gesr_core.training.measures import Measures, task_losses
from gesr_core.training.processes import ALONE, Processes
from gesr_core.training.progress import Progress
from gesr_core.training.readers import RequestReader
from gesr_core.training.rule import Rule
from gesr_core.training.state import StateFolder, TrainingState

log = logging.getLogger("train")

# About 1.5 kB each once decoded: a window stays near 100 MB.
WINDOW_REQUESTS: Final = 65_536


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
    precision: str
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

    @property
    def device(self) -> torch.device:
        """Where the items are, and batches go."""
        return self.items.features.index_R.device

    def to(self, device: torch.device) -> TrainingData:
        """Return the data with its items on `device`."""
        features, newest_items = map_tensors((self.items.features, self.newest_items), lambda t: t.to(device))
        return replace(self, items=replace(self.items, features=features), newest_items=newest_items)


def train(
    model: nn.Module,
    data: TrainingData,
    *,
    settings: TrainingSettings,
    processes: Processes = ALONE,
    folder: StateFolder | None = None,
    on_epoch: Callable[[Sequence[Mapping[str, Any]]], None] | None = None,
) -> TrainingResult:
    """Train until the epochs are over or `patience` of them brought no better validation NE (of the score's tasks).

    With a `catch_up_rate`, the best epoch's weights then learn the validation requests, once: they are the newest there
    are, and what changed since the training dates (a promotion, say) shows in them alone. Ours.

    Args:
        model: fresh, and the same in every process; it is trained in place.
        data: what to train on.
        settings: how.
        processes: this process among those that train together; measurements are the first one's alone.
        folder: where the state after each epoch is kept; a state that is there already is gone on from.
        on_epoch: called in the first process after each epoch that is trained here, with what was measured of all.
    """
    model, data = model.to(processes.device), data.to(processes.device)
    rule = Rule.of(
        model,
        processes=processes,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        steps=math.ceil(settings.epochs * data.training.rows / settings.batch_requests),
    )
    with _computing(settings.threads, device=processes.device):
        state = _resumed(model, rule, folder=folder, settings=settings)
        if processes.first and folder:
            folder.start_log(log_lines(state))
        while not _is_over(state, settings):
            state = _epoch(model, data, rule=rule, settings=settings, state=state)
            if processes.first:
                _keep(state, folder=folder, on_epoch=on_epoch)
        if state.best_weights:
            model.load_state_dict(state.best_weights)
        catch_up_loss = None
        if settings.catch_up_rate:
            catch_up_loss = learn_date(model, data, reader=data.validation, settings=settings, processes=processes)
            log.info("caught up with the validation date: loss %.4f", catch_up_loss)
    return TrainingResult(model.state_dict(), catch_up_loss, state.best_epoch, state.epochs, state.epoch_s)


def log_lines(state: TrainingState | TrainingResult) -> list[dict[str, Any]]:
    """Return the lines of `log.jsonl`: what was measured after each epoch, and how long the epoch took."""
    return [{**epoch, "elapsed_s": s} for epoch, s in zip(state.epochs, state.epoch_s, strict=True)]


def _resumed(model: nn.Module, rule: Rule, *, folder: StateFolder | None, settings: TrainingSettings) -> TrainingState:
    """Put model and rule where the kept state left them, and return it; without one, return that of a fresh start."""
    state = folder.load(like=model.state_dict()) if folder else None
    rule.processes.require_same(len(state.epochs) if state else 0, what="the number of epochs to resume after")
    if state is None:
        return TrainingState(weights={}, best_weights={}, optimizer={}, steps=0, best_epoch=0, epochs=(), epoch_s=())
    log.info(
        "resuming after epoch %d of %d, which a run that was ended had finished", len(state.epochs), settings.epochs
    )
    model.load_state_dict(state.weights)
    rule.restore(state.optimizer, steps=state.steps)
    return state


def _is_over(state: TrainingState, settings: TrainingSettings) -> bool:
    done = len(state.epochs)
    return done >= settings.epochs or (done > 0 and done - state.best_epoch >= settings.patience)


def _epoch(
    model: nn.Module, data: TrainingData, *, rule: Rule, settings: TrainingSettings, state: TrainingState
) -> TrainingState:
    """Train and measure one epoch more; return the state after it, whose weights are the model's own until then."""
    started, epoch = time.monotonic(), len(state.epochs) + 1
    name = f"epoch {epoch} of {settings.epochs}"
    loss = _train_epoch(model, data, reader=data.training, rule=rule, settings=settings, epoch=epoch, name=name)
    measured: dict[str, Any] = {"epoch": epoch, "loss": loss, "ne": math.nan}
    if rule.processes.first:
        measured |= validate(model, data, settings=settings) | _report(model, data)
    measured["ne"] = rule.processes.from_first(measured["ne"])
    elapsed_s = time.monotonic() - started
    log.info("%s: %s (%.0f s)", name, _in_words(measured), elapsed_s)
    best_ne = state.epochs[state.best_epoch - 1]["ne"] if state.best_epoch else math.inf
    better = measured["ne"] < best_ne
    after = TrainingState(
        weights=model.state_dict(),
        best_weights=copy.deepcopy(model.state_dict()) if better else state.best_weights,
        optimizer=rule.tensors(),
        steps=rule.done,
        best_epoch=epoch if better else state.best_epoch,
        epochs=(*state.epochs, measured),
        epoch_s=(*state.epoch_s, elapsed_s),
    )
    if _is_over(after, settings) and epoch < settings.epochs:
        log.info("no better validation NE for %d epochs: stopping", epoch - after.best_epoch)
    return after


def _keep(
    state: TrainingState, *, folder: StateFolder | None, on_epoch: Callable[[Sequence[Mapping[str, Any]]], None] | None
) -> None:
    if folder:
        folder.save(state)
        folder.log(log_lines(state)[-1])
    if on_epoch:
        on_epoch(state.epochs)


def learn_date(
    model: nn.Module,
    data: TrainingData,
    *,
    reader: RequestReader,
    settings: TrainingSettings,
    processes: Processes = ALONE,
) -> float:
    """Learn the requests of one more date in one pass, at the catch-up rate; return the mean loss.

    The model goes on from the weights that it has; its optimizer starts anew.
    """
    rule = Rule.of(
        model,
        processes=processes,
        learning_rate=settings.learning_rate * settings.catch_up_rate,
        weight_decay=settings.weight_decay,
        steps=math.ceil(reader.rows / settings.batch_requests),
    )
    with _computing(settings.threads, device=processes.device):
        return _train_epoch(
            model, data, reader=reader, rule=rule, settings=settings, epoch=settings.epochs + 1, name="catching up"
        )


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


def loss_of(model: Any, share: Batch, data: TrainingData, *, whole: Batch, settings: TrainingSettings) -> Tensor:
    """Return the loss of a share of a batch: that of its logits, and what a model that learns more adds to it.

    The shares' losses add up to the mean over the whole batch. The forward pass has the configured precision;
    losses are fp32.
    """
    divisor = whole.weight_BN(unexposed=settings.unexposed_weight).sum().clamp_min(1).to(data.device)
    loss_weight_S = torch.tensor(settings.loss_weights, device=data.device)

    def task_loss(logits_BNS: Tensor) -> Tensor:
        losses_S = task_losses(
            logits_BNS.float(),
            share.labels_BNS,
            rate_BN=share.rate_BN,
            weight_BN=share.weight_BN(unexposed=settings.unexposed_weight),
            divisor=divisor,
        )
        return (losses_S * loss_weight_S).sum()

    with torch.autocast(data.device.type, dtype=torch.bfloat16, enabled=settings.precision == "bf16"):
        state, candidates = encode(model, share, data.items)
        loss = task_loss(model.score(state, candidates))
        if isinstance(model, LearnsMore):
            pairs = max(1.0, float(whole.valid_BN.sum()))
            more = model.extra_loss(state, candidates, task_loss=task_loss, valid_BN=share.valid_BN, pairs=pairs)
            loss = loss + more.float()
    return loss


@torch.inference_mode()
def validate(model: nn.Module, data: TrainingData, *, settings: TrainingSettings) -> dict[str, Any]:
    """Return validation NE and AUC over exposed pairs: per task, and NE weighted as the tasks are in the score.

    In fp32, as it is served, whatever the precision of training.
    """
    model.eval()
    measures = Measures()
    for jagged in _decoded(data.validation, data):
        plan = plan_batches(
            jagged, batch_requests=settings.batch_requests, max_history=data.features.max_history, generator=None
        )
        for select in plan:
            batch = make_batch(jagged, select, features=data.features).to(data.device)
            logits_BNS = logits_of(model, batch, data.items)
            kept_BN = batch.valid_BN & batch.exposed_BN
            weight_BN = batch.sampling_weight_BN
            measures.add(logits_BNS, batch.labels_BNS, rate_BN=batch.rate_BN, weight_BN=weight_BN, kept_BN=kept_BN)
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
    rule: Rule,
    settings: TrainingSettings,
    epoch: int,
    name: str,
) -> float:
    """Take one pass over the reader's requests; return the mean loss per batch."""
    model.train()
    processes = rule.processes
    total, batches = 0.0, 0
    with Progress(name, requests=reader.rows, shown=processes.first) as progress:
        for number, jagged in enumerate(_decoded(reader, data)):
            seed = settings.seed + 1_000_003 * epoch + 7_919 * number
            # Dropout draws from the global generator: each window starts from a seed of its own, in each process.
            torch.manual_seed(seed + 104_729 * processes.rank)
            plan = plan_batches(
                jagged,
                batch_requests=settings.batch_requests,
                max_history=data.features.max_history,
                generator=torch.Generator().manual_seed(seed),
            )
            for select in plan:
                _before_step(model, data, rule=rule, settings=settings)
                whole = make_batch(jagged, select, features=data.features)
                share = processes.share(whole).to(data.device)
                has_some = len(share.labels_BNS) > 0
                loss = loss_of(model, share, data, whole=whole, settings=settings) if has_some else None
                total, batches = total + rule.step(loss), batches + 1
                progress.advance(len(select), loss=total / batches)
                reach(f"in_epoch_{epoch}")
    return total / max(1, batches)


def _before_step(model: nn.Module, data: TrainingData, *, rule: Rule, settings: TrainingSettings) -> None:
    """Let a model that learns more prepare its step from a random state of its own: dropout's draws stay the same."""
    if isinstance(model, LearnsMore):
        devices = [data.device] if data.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
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


@contextlib.contextmanager
def _computing(threads: int, *, device: torch.device) -> Iterator[None]:
    """Compute with that many threads, and in one order, as far as torch can."""
    if device.type == "cuda":
        # cuBLAS wants it for the same sums each time, before its first call.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.set_num_threads(threads or before)
    keep_freed_memory()
    # Several threads would add the gradients of one row in the order in which they arrive.
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Torch would also fill fresh memory, which nothing here reads before it is written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
        torch.set_num_threads(before)


def _in_words(measured: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in measured.items() if name != "epoch")
