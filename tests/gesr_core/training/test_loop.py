"""The loop on a toy set: what it calls of a model that learns more than its logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gesr_core.config import Config
from gesr_core.model.build import LearnsMore, build_model
from gesr_core.model.inputs import History, ItemFeatures, ItemState, UserFeatures
from gesr_core.training.data import Batch, decode_window, make_batch, windows
from gesr_core.training.loop import TrainingData, TrainingResult, loss_of, train
from gesr_core.training.trainer import fit_features, open_training_set, training_data, training_settings
from tests.training_sets import DATES, toy_config, write_toy_set


class Teacher(nn.Module):
    """A two-tower that has a second logit to learn, and notes what it is called with."""

    steps_seen: Tensor

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        # Zeros, not draws: the inner model's dropout must see the random state that it sees alone.
        self.head = nn.Linear(8, 2)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("steps_seen", torch.zeros(()))
        self.shares: list[float] = []
        self.items: list[ItemFeatures] = []
        self.pairs: list[tuple[float, int]] = []

    def encode_items(self, items: ItemFeatures) -> ItemState:
        return self.inner.encode_items(items)

    def encode_user(self, history: History, history_items: ItemState, user: UserFeatures) -> Any:
        return self.inner.encode_user(history, history_items, user)

    def score(self, state: Any, items: ItemState) -> Tensor:
        return self.inner.score(state, items)

    def before_step(self, *, share_done: float, items: ItemFeatures) -> None:
        assert self.training
        assert not torch.is_grad_enabled()
        torch.rand(3)
        self.steps_seen += 1
        self.shares.append(share_done)
        self.items.append(items)

    def extra_loss(
        self,
        state: Any,
        candidates: ItemState,
        *,
        task_loss: Callable[[Tensor], Tensor],
        valid_BN: Tensor,
        pairs: float,
    ) -> Tensor:
        self.pairs.append((pairs, int(valid_BN.sum())))
        # Detached: what the served logits learn stays as it is.
        return task_loss(self.head(candidates.vector_RD.detach()))

    def report(self, items: ItemFeatures) -> dict[str, float]:
        assert not self.training
        assert torch.is_inference_mode_enabled()
        return {"items_reported": float(len(items.index_R))}


class Alone(nn.Module):
    """The same weights without the hook."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.inner = teacher.inner
        self.encode_items, self.encode_user, self.score = teacher.encode_items, teacher.encode_user, teacher.score


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return toy_config(tmp_path)


@pytest.fixture
def data(tmp_path: Path, config: Config) -> TrainingData:
    opened = open_training_set(write_toy_set(tmp_path / "set"), reader="arrow")
    return training_data(opened, fit_features(opened, config))


def teacher(data: TrainingData, config: Config) -> Teacher:
    torch.manual_seed(1)
    return Teacher(build_model(config.models["two_tower"], data.features.sizes))


def first_batch(data: TrainingData) -> Batch:
    jagged = decode_window(next(windows(data.training.batches(), rows=16)), items=data.items, features=data.features)
    return make_batch(jagged, torch.arange(16), features=data.features)


def test_a_plain_model_learns_nothing_more(data: TrainingData, config: Config) -> None:
    model = teacher(data, config)
    assert isinstance(model, LearnsMore)
    assert not isinstance(model.inner, LearnsMore)


def test_what_a_model_learns_more_is_learned_beside_its_logits(data: TrainingData, config: Config) -> None:
    settings = training_settings(config)
    model, plain = teacher(data, config), Alone(teacher(data, config))
    result, without = train(model, data, settings=settings), train(plain, data, settings=settings)
    assert result.weights["head.weight"].abs().sum() > 0
    # before_step drew random numbers, and extra_loss took no part in these: not a bit differs.
    assert all(torch.equal(result.weights[name], without.weights[name]) for name in without.weights)


def test_the_task_loss_of_the_served_logits_is_the_loss(data: TrainingData, config: Config) -> None:
    model, settings, batch = teacher(data, config).eval(), training_settings(config), first_batch(data)
    served: list[float] = []

    def note(state: Any, candidates: ItemState, *, task_loss: Callable[[Tensor], Tensor], **_: Any) -> Tensor:
        served.append(task_loss(model.score(state, candidates)).item())
        return torch.tensor(100.0)

    alone = loss_of(Alone(model), batch, data, whole=batch, settings=settings).item()
    model.extra_loss = note  # type: ignore[method-assign]
    assert loss_of(model, batch, data, whole=batch, settings=settings).item() == pytest.approx(alone + 100)
    assert served == [alone]


def test_before_every_step_a_model_sees_how_far_training_is(data: TrainingData, config: Config) -> None:
    model = teacher(data, config)
    result = train(model, data, settings=training_settings(config))
    # 60 requests are 4 batches, and the 30 of the validation date, learned at last, 2.
    assert model.shares == [i / 8 for i in range(8)] + [0.0, 0.5]
    assert result.weights["steps_seen"] == 4 * result.best_epoch + 2
    assert all(pairs == valid for pairs, valid in model.pairs)


def test_a_model_sees_the_items_of_the_newest_training_date(data: TrainingData, config: Config) -> None:
    model = teacher(data, config)
    train(model, data, settings=training_settings(config))
    begin = data.items.blocks[DATES[1]][1]
    assert begin == 20
    expected = data.items.features.numeric_RF[20:40]
    assert all(torch.equal(items.numeric_RF, expected) for items in model.items)
    assert not torch.equal(data.items.features.numeric_RF[40:], expected)


def test_what_a_model_reports_is_measured_after_each_epoch(data: TrainingData, config: Config) -> None:
    result: TrainingResult = train(teacher(data, config), data, settings=training_settings(config))
    assert [epoch["items_reported"] for epoch in result.epochs] == [20.0, 20.0]


def test_bf16_trains_otherwise_than_fp32_and_about_as_well(data: TrainingData, config: Config) -> None:
    results = {}
    for precision in ("fp32", "bf16"):
        torch.manual_seed(1)
        model = build_model(config.models["gesr"], data.features.sizes)
        settings = replace(training_settings(config), precision=precision, epochs=12, patience=12, learning_rate=0.02)
        results[precision] = train(model, data, settings=settings)
    fp32, bf16 = results["fp32"], results["bf16"]
    assert all(tensor.isfinite().all() and tensor.dtype != torch.bfloat16 for tensor in bf16.weights.values())
    assert any(not torch.equal(bf16.weights[name], tensor) for name, tensor in fp32.weights.items())
    # From 1.0 to 0.2: what is learned is fifteen times what the precision may cost.
    assert fp32.epochs[0]["ne"] - fp32.epochs[-1]["ne"] > 0.75
    assert bf16.epochs[-1]["ne"] == pytest.approx(fp32.epochs[-1]["ne"], abs=0.05)


def test_in_bf16_the_forward_pass_is_and_the_losses_are_not(data: TrainingData, config: Config) -> None:
    model, batch = teacher(data, config), first_batch(data)
    seen: dict[str, torch.dtype] = {}

    def note(state: Any, candidates: ItemState, *, task_loss: Callable[[Tensor], Tensor], **_: Any) -> Tensor:
        seen["candidates"] = candidates.vector_RD.dtype
        seen["more"] = model.head(candidates.vector_RD).dtype
        seen["task loss"] = task_loss(model.head(candidates.vector_RD)).dtype
        return model.head(candidates.vector_RD).sum()

    model.extra_loss = note  # type: ignore[method-assign]
    settings = replace(training_settings(config), precision="bf16")
    loss = loss_of(model, batch, data, whole=batch, settings=settings)
    assert seen == {"candidates": torch.bfloat16, "more": torch.bfloat16, "task loss": torch.float32}
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in model.parameters())
