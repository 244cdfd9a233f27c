"""The student against loops and against its teacher, who learns from what, and what is asked when serving."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import Tensor

from gesr_core.config import TarqConfig
from gesr_core.model.build import build_model
from gesr_core.model.codebook import squared_distances
from gesr_core.model.inputs import ItemState
from gesr_core.model.tarq import CODES, ITEM_LOSS, LATENT, TarqUserState, gathered, nearness
from tests.models import ITEMS, SIZES, TARQ, Inputs, random_inputs, random_model, scores

LENGTHS = [0, 1, 4, 6]
TEACHER = ("teacher.", "teacher_history.", "teacher_logit.")


def in_training(config: TarqConfig = TARQ, *, seed: int = 0) -> tuple[Any, Inputs, TarqUserState, ItemState]:
    """A model without dropout in training mode, inputs, and the states of both sides."""
    model = random_model(config.model_copy(update={"dropout": 0.0}), seed=seed).train()
    inputs = random_inputs(LENGTHS)
    states = model.encode_items(inputs.items)
    user = model.encode_user(inputs.history, states.take(inputs.history.row_BT), inputs.user)
    return model, inputs, user, states.take(inputs.candidate_BN)


def distilled(model: Any, user: TarqUserState, candidates: ItemState) -> Tensor:
    losses = model.distillation(user, candidates, model.taught(user, candidates))
    return torch.stack([loss_BN for _, loss_BN in losses])


def test_a_candidate_sums_what_its_codes_found() -> None:
    found_BQSD = torch.randn(2, 3, 4, 5)
    codes_BNQ = torch.randint(0, 4, (2, 6, 3))
    found_BND = gathered(found_BQSD, codes_BNQ)
    for b in range(2):
        for n in range(6):
            expected_D = sum(found_BQSD[b, q, int(codes_BNQ[b, n, q])] for q in range(3))
            torch.testing.assert_close(found_BND[b, n], expected_D)


@settings(deadline=None, max_examples=20)
@given(
    shape=st.tuples(*[st.integers(1, 5)] * 4),
    own=st.booleans(),
    temperature=st.floats(0.1, 10),
    seed=st.integers(0, 99),
)
def test_nearness_in_one_product_is_that_of_distances(
    shape: tuple[int, int, int, int], own: bool, temperature: float, seed: int
) -> None:
    requests, candidates, codes, width = shape
    draw = torch.Generator().manual_seed(seed)
    vector_BND = torch.randn(requests, candidates, width, dtype=torch.float64, generator=draw)
    of_request = (requests,) if own else ()
    code_SD = torch.randn(*of_request, codes, width, dtype=torch.float64, generator=draw)
    plain_BNS = (-squared_distances(vector_BND, code_SD) / temperature).softmax(-1)
    torch.testing.assert_close(nearness(vector_BND, code_SD, temperature=temperature), plain_BNS, rtol=0, atol=1e-9)


@settings(deadline=None, max_examples=20)
@given(lengths=st.lists(st.integers(0, 6), min_size=1, max_size=4), levels=st.integers(1, 3), seed=st.integers(0, 99))
def test_all_codes_once_a_request_give_what_each_candidates_own_codes_give(
    lengths: list[int], levels: int, seed: int
) -> None:
    model, inputs = random_model(TARQ.model_copy(update={"levels": levels})), random_inputs(lengths, seed=seed)
    states = model.encode_items(inputs.items)
    state = model.encode_user(inputs.history, states.take(inputs.history.row_BT), inputs.user)
    candidates = states.take(inputs.candidate_BN)
    of_history = states.take(inputs.history.row_BT)
    events_BTD = model.events(inputs.history, of_history.token_RD, of_history.extra)
    valid_BT = inputs.history.valid_BT
    seen = model.student.see(model.student_history(events_BTD, valid_BT), valid_BT)
    own_BNQD = model.codebooks.vectors(candidates.extra[CODES])
    plain_BND = model.student.ask(seen, own_BNQD.flatten(1, 2)).unflatten(1, own_BNQD.shape[1:3]).sum(2)
    torch.testing.assert_close(gathered(state.found_BQSD, candidates.extra[CODES]), plain_BND, rtol=0, atol=1e-9)


def test_with_a_code_per_item_and_shared_weights_the_student_finds_what_the_teacher_finds() -> None:
    model, inputs, _, _ = in_training(TARQ.model_copy(update={"levels": 1, "codes": ITEMS}))
    model.student_history.load_state_dict(model.teacher_history.state_dict())
    model.student.load_state_dict(model.teacher.state_dict())
    states = model.encode_items(inputs.items)
    model.codebooks.codes_QSD.data[0] = states.token_RD.detach()
    states = replace(states, extra={**states.extra, CODES: torch.arange(ITEMS).unsqueeze(1)})
    user = model.encode_user(inputs.history, states.take(inputs.history.row_BT), inputs.user)
    candidates = states.take(torch.arange(ITEMS).expand(len(LENGTHS), ITEMS))
    found_BND = gathered(user.found_BQSD, candidates.extra[CODES])
    torch.testing.assert_close(found_BND, model.taught(user, candidates), rtol=0, atol=1e-9)
    assert found_BND[1:].abs().min() > 0


def test_nothing_of_the_distillation_reaches_the_teacher() -> None:
    model, _, user, candidates = in_training()
    distilled(model, user, candidates).sum().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert not any(name.startswith((*TEACHER, "item_tower.", "events.", "towers.")) for name in reached)
    for part in ("student.query", "student.value", "student_history.key", "codebooks.codes_QSD", "latent.0"):
        assert any(name.startswith(part) for name in reached), part


def test_alignment_alone_teaches_latents_codes_and_the_student() -> None:
    model, _, user, candidates = in_training()
    distilled(model, user, candidates)[1].sum().backward()
    for parameter in (model.latent[0].weight, model.codebooks.codes_QSD, model.student.value.weight):
        assert parameter.grad.abs().sum() > 0


def test_the_teacher_learns_from_its_own_loss() -> None:
    model, inputs, user, candidates = in_training()
    seen: list[Tensor] = []

    def task_loss(logits_BNY: Tensor) -> Tensor:
        seen.append(logits_BNY)
        return logits_BNY.square().sum()

    model.extra_loss(user, candidates, task_loss=task_loss, valid_BN=inputs.candidate_BN >= 0, pairs=1.0).backward()
    assert len(seen) == 1
    assert all(p.grad is not None for name, p in model.named_parameters() if name.startswith(TEACHER))
    served = model.score(user, candidates)
    assert not torch.allclose(seen[0], served)


def test_alignment_is_the_papers_formula() -> None:
    model, _, user, candidates = in_training()
    assert user.found_BQSD is not None
    alignment_BN = distilled(model, user, candidates)[1]
    taught_BND, books = model.taught(user, candidates).detach(), model.codebooks.codes_QSD.detach()
    for b in range(len(LENGTHS)):
        for n in range(alignment_BN.shape[1]):
            v_D, v_bar_D, total = candidates.extra[LATENT][b, n].detach(), taught_BND[b, n], 0.0
            for level, code in enumerate(candidates.extra[CODES][b, n].tolist()):
                found_SD = user.found_BQSD[b, level].detach()
                p_S = F.softmax(-(v_D - books[level]).square().sum(-1), 0)
                q_S = F.softmax(-(v_bar_D - found_SD).square().sum(-1), 0)
                total += float((p_S * (p_S / (q_S + 1e-8) + 1e-8).log()).sum())
                total += float((q_S * (q_S / (p_S + 1e-8) + 1e-8).log()).sum())
                v_D, v_bar_D = v_D - books[level, code], v_bar_D - found_SD[code]
            assert alignment_BN[b, n].item() == pytest.approx(total)


def test_losses_do_not_count_padding() -> None:
    model, inputs, user, candidates = in_training()
    valid_BN = torch.ones_like(inputs.candidate_BN, dtype=torch.bool)
    wider = ItemState.of({k: torch.cat([t, t[:, :2]], 1) for k, t in candidates.tensors().items()})
    wider_valid_BN = torch.cat([valid_BN, torch.zeros(len(LENGTHS), 2, dtype=torch.bool)], 1)

    def loss(items: ItemState, valid_BN: Tensor, pairs: float) -> Tensor:
        return model.extra_loss(
            user, items, task_loss=lambda logits: logits.new_zeros(()), valid_BN=valid_BN, pairs=pairs
        )

    torch.testing.assert_close(loss(wider, wider_valid_BN, 20.0), loss(candidates, valid_BN, 20.0))
    torch.testing.assert_close(loss(candidates, valid_BN, 10.0), 2 * loss(candidates, valid_BN, 20.0))


def test_when_serving_nobody_asks_the_teacher_nor_assigns_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = random_model(TARQ), random_inputs(LENGTHS)
    states = model.encode_items(inputs.items)
    assert CODES in states.extra
    assert LATENT not in states.extra
    before = scores(model, inputs)
    for name, parameter in model.named_parameters():
        if name.startswith((*TEACHER, "latent.")):
            parameter.data.fill_(torch.nan)
    monkeypatch.setattr(model.codebooks, "assign", lambda *_: pytest.fail("codes assigned again"))
    state = model.encode_user(inputs.history, states.take(inputs.history.row_BT), inputs.user)
    assert state.teacher is None
    assert torch.equal(model.score(state, states.take(inputs.candidate_BN)), before)


def test_the_codes_of_an_item_decide_what_it_is_given() -> None:
    model, inputs = random_model(TARQ), random_inputs(LENGTHS)
    inputs = replace(inputs, candidate_BN=inputs.candidate_BN.clamp_min(0))
    states = model.encode_items(inputs.items)
    state = model.encode_user(inputs.history, states.take(inputs.history.row_BT), inputs.user)
    other = replace(states, extra={**states.extra, CODES: (states.extra[CODES] + 1) % TARQ.codes})
    given = [model.score(state, s.take(inputs.candidate_BN)) for s in (states, other)]
    # In an empty history every code finds the same nothing.
    torch.testing.assert_close(given[0][0], given[1][0])
    assert (given[0][1:] != given[1][1:]).any(-1).all()


def test_codebooks_are_initialised_once_the_warm_up_is_over_and_revived_later() -> None:
    torch.manual_seed(0)
    model: Any = build_model(TARQ.model_copy(update={"warm_up_share": 0.2}), SIZES).double()
    inputs = random_inputs(LENGTHS)
    model.before_step(share_done=0.19, items=inputs.items)
    assert not model.codebooks.ready
    assert model.report(inputs.items) == {}
    model.before_step(share_done=0.2, items=inputs.items)
    assert model.codebooks.ready
    assert model.report(inputs.items)["code_use_1"] == 1.0
    model.codebooks.codes_QSD.data[0, 0] = 1e3
    model.before_step(share_done=0.21, items=inputs.items)
    assert model.report(inputs.items)["code_use_1"] < 1.0
    model.before_step(share_done=0.26, items=inputs.items)
    assert model.report(inputs.items)["code_use_1"] == 1.0
    # Another pass has begun: its share is lower.
    model.codebooks.codes_QSD.data[0, 0] = 1e3
    model.before_step(share_done=0.0, items=inputs.items)
    assert model.report(inputs.items)["code_use_1"] == 1.0
    model.codebooks.codes_QSD.data[0, 0] = 1e3
    model.before_step(share_done=0.04, items=inputs.items)
    assert model.report(inputs.items)["code_use_1"] < 1.0
    model.before_step(share_done=0.05, items=inputs.items)
    assert model.report(inputs.items)["code_use_1"] == 1.0


def test_the_autoencoder_teaches_latents_to_tell_the_item_and_nothing_else() -> None:
    model, inputs, _, _ = in_training()
    model.weights = replace(model.weights, codebook=0.0, commitment=0.0)
    states = model.encode_items(inputs.items)
    token_RD, codes_RQ = states.token_RD.detach(), states.extra[CODES]
    quantised_RD = model.codebooks.vectors(codes_RQ).sum(-2)
    expected_R = (quantised_RD + model.told_again(quantised_RD) - token_RD).square().sum(-1)
    torch.testing.assert_close(states.extra[ITEM_LOSS], expected_R, rtol=0, atol=1e-9)
    states.extra[ITEM_LOSS].sum().backward()
    reached = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {"latent", "told_again"}


@pytest.mark.parametrize(("weight", "stay_apart"), [(1.0, True), (0.0, False)])
def test_without_an_autoencoder_latents_end_up_all_alike(weight: float, stay_apart: bool) -> None:
    torch.manual_seed(0)
    model: Any = build_model(TARQ.model_copy(update={"autoencoder_weight": weight}), SIZES).double().train()
    token_RD = torch.randn(256, TARQ.width, dtype=torch.float64)

    def latents() -> Tensor:
        return token_RD + model.latent(token_RD)

    model.codebooks.initialise(latents().detach())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(100):
        latent_RD = latents()
        optimizer.zero_grad()
        model.item_loss(token_RD, latent_RD, model.codebooks.assign(latent_RD)).mean().backward()
        optimizer.step()
    spread = float((latents().var(0).sum() / token_RD.var(0).sum()).detach())
    assert (spread > 1.0) if stay_apart else (spread < 0.1)


def test_revival_can_be_switched_off() -> None:
    model: Any = build_model(TARQ.model_copy(update={"revive": False}), SIZES).double()
    inputs = random_inputs(LENGTHS)
    model.before_step(share_done=0.0, items=inputs.items)
    model.codebooks.codes_QSD.data[0, 0] = 1e3
    model.before_step(share_done=0.5, items=inputs.items)
    assert model.report(inputs.items)["code_use_1"] < 1.0


def test_before_the_codebooks_are_there_the_towers_alone_score() -> None:
    model, inputs = random_model(TARQ), random_inputs(LENGTHS)
    model.codebooks.ready.fill_(False)
    backbone = random_model(TARQ.model_copy(update={"serves": "backbone"}))
    assert torch.equal(scores(model, inputs), scores(backbone, inputs))


def test_the_teacher_can_be_served_from_the_same_weights() -> None:
    model, inputs, user, candidates = in_training()
    teacher: Any = build_model(TARQ.model_copy(update={"serves": "teacher"}), SIZES).double().eval()
    teacher.load_state_dict(model.state_dict())
    logits = model.teachers_logits(user, candidates, model.taught(user, candidates))
    torch.testing.assert_close(scores(teacher, inputs), logits)
