"""What holds for every model: three functions whose result depends on a pair alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from gesr_core.config import AnyModelConfig
from gesr_core.model.build import build_model
from gesr_core.model.inputs import History, ItemFeatures
from tests.models import CONFIGS, GESR, SIZES, TARQ, TWO_TOWER, UNTOLD, Inputs, random_inputs, random_model, scores

LENGTHS = [0, 1, 4, 6]


@pytest.fixture(params=sorted(CONFIGS))
def model(request: pytest.FixtureRequest) -> Any:
    """Every model, with random weights."""
    return random_model(CONFIGS[request.param])


def test_a_score_does_not_depend_on_the_other_candidates_nor_on_their_order(model: Any) -> None:
    inputs = random_inputs(LENGTHS)
    together = scores(model, inputs)
    order = torch.tensor([3, 0, 4, 2, 1])
    torch.testing.assert_close(scores(model, inputs, inputs.candidate_BN[:, order]), together[:, order])
    for n in range(5):
        torch.testing.assert_close(scores(model, inputs, inputs.candidate_BN[:, n : n + 1]), together[:, n : n + 1])


def test_a_score_does_not_depend_on_the_padding(model: Any) -> None:
    short = scores(model, random_inputs(LENGTHS))
    torch.testing.assert_close(scores(model, random_inputs(LENGTHS, padding=5)), short)


def test_a_score_does_not_depend_on_the_batch(model: Any) -> None:
    inputs = random_inputs(LENGTHS)
    states = model.encode_items(inputs.items)
    together = scores(model, inputs)
    for b, length in enumerate(LENGTHS):
        padded = inputs.history
        history = History(
            padded.row_BT[b : b + 1, :length],
            padded.age_s_BT[b : b + 1, :length],
            padded.action_BT[b : b + 1, :length],
            padded.value_BT[b : b + 1, :length],
            padded.length_B[b : b + 1],
        )
        user = type(inputs.user)(inputs.user.categorical_BC[b : b + 1], inputs.user.numeric_BF[b : b + 1])
        state = model.encode_user(history, states.take(history.row_BT), user)
        alone = model.score(state, states.take(inputs.candidate_BN[b : b + 1]))
        torch.testing.assert_close(alone, together[b : b + 1])


@pytest.mark.parametrize("config", [TWO_TOWER, GESR.model_copy(update={"cross_width": 4}), TARQ], ids=lambda c: c.name)
@pytest.mark.parametrize("untold", [*UNTOLD])
def test_of_what_has_no_width_a_model_is_not_told(config: AnyModelConfig, untold: str) -> None:
    def other(inputs: Inputs) -> Inputs:
        items, user = inputs.items, inputs.user
        if untold == "id_width":
            items = replace(items, index_R=(items.index_R + 1) % 8)
        elif untold == "category_width":
            items = replace(items, categorical_RC=(items.categorical_RC + 1) % 3)
        else:
            user = replace(user, categorical_BC=(user.categorical_BC + 1) % 3)
        return replace(inputs, items=items, user=user)

    inputs = random_inputs(LENGTHS)
    told, not_told = random_model(config), random_model(config.model_copy(update={untold: 0}))
    assert not torch.equal(scores(told, other(inputs)), scores(told, inputs))
    assert torch.equal(scores(not_told, other(inputs)), scores(not_told, inputs))
    assert sum(p.numel() for p in not_told.parameters()) < sum(p.numel() for p in told.parameters())


def test_different_candidates_get_different_scores(model: Any) -> None:
    inputs = random_inputs(LENGTHS)
    everything = torch.arange(12).expand(len(LENGTHS), 12)
    assert all(len(row.unique()) > 9 for row in scores(model, inputs, everything)[..., 0])


def test_users_and_items_that_training_never_saw_get_finite_scores(model: Any) -> None:
    inputs = random_inputs([0, 1])
    nothing = ItemFeatures(*(torch.zeros_like(t) for t in vars(inputs.items).values()))
    user = type(inputs.user)(torch.zeros_like(inputs.user.categorical_BC), torch.zeros_like(inputs.user.numeric_BF))
    unseen = type(inputs)(nothing, inputs.history, user, inputs.candidate_BN)
    assert scores(model, unseen).isfinite().all()
    assert scores(model.float(), to_float(unseen)).isfinite().all()


@pytest.mark.parametrize(
    ("name", "left_out"),
    [
        ("gesr without gating", "gating.alpha_KS"),
        ("gesr without hard matching", "matching."),
        ("gesr without attention", "attention."),
        ("gesr", "cross."),
        ("gesr of gating alone", "matching."),
    ],
)
def test_what_is_switched_off_has_no_weights(name: str, left_out: str) -> None:
    everything: Any = build_model(GESR.model_copy(update={"cross_width": 4}), SIZES)
    assert any(weight.startswith(left_out) for weight in everything.state_dict())
    assert not any(weight.startswith(left_out) for weight in build_model(CONFIGS[name], SIZES).state_dict())


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_empty_histories_give_finite_gradients(name: str) -> None:
    model = random_model(CONFIGS[name]).train()
    scores(model, random_inputs([0, 0, 1])).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", [name for name in sorted(CONFIGS) if name.startswith("gesr")])
def test_at_the_start_gesr_is_the_two_tower(name: str) -> None:
    torch.manual_seed(3)
    config = CONFIGS[name]
    gesr: Any = build_model(config, SIZES).double().eval()
    two_tower = random_model(TWO_TOWER.model_copy(update={untold: getattr(config, untold) for untold in UNTOLD}))
    gesr.load_state_dict(two_tower.state_dict(), strict=False)
    inputs = random_inputs(LENGTHS)
    assert torch.equal(scores(gesr, inputs), scores(two_tower, inputs))


def test_the_first_step_teaches_the_secondary_logits_something() -> None:
    torch.manual_seed(3)
    gesr: Any = build_model(GESR, SIZES).double().eval()
    scores(gesr, random_inputs(LENGTHS)).sum().backward()
    assert all(head.head[-1].weight.grad.abs().sum() > 0 for head in gesr.gating.logits)


def to_float(inputs: Inputs) -> Inputs:
    """Inputs in float32, as they come when serving."""

    def convert(part: Any) -> Any:
        if isinstance(part, torch.Tensor):
            return part.float() if part.is_floating_point() else part
        return type(part)(*(convert(value) for value in vars(part).values()))

    converted: Inputs = convert(inputs)
    return converted
