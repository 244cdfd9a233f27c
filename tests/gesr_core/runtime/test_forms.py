"""Lower precision and compilation: what they change is bounded here, and measured before a run by trials."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gesr_core.errors import ConfigurationError
from gesr_core.runtime import trial as trial_module
from gesr_core.runtime.forms import EXACT, Form, Fp8Linear, forms_of, logits_of, lowered, lowered_items
from gesr_core.runtime.item_index import ItemIndex
from gesr_core.runtime.scorer import Scorer
from gesr_core.runtime.trial import TRIAL_TYPE, Trial, TryForms, choose_form, compare, try_forms
from gesr_core.runtime.worker import ScoreShards, on_device
from tests.gesr_core.runtime.test_memory import SETTINGS, requests, scorer
from tests.models import CONFIGS, random_inputs, random_model

CPU = torch.device("cpu")
BF16 = Form("bf16")
LENGTHS = [0, 1, 5, 6]
compiles = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")


def small_weights(name: str) -> nn.Module:
    """A model of a size of weights as training leaves them: logits of some units."""
    model: nn.Module = random_model(CONFIGS[name]).float()
    torch.manual_seed(3)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


@torch.inference_mode()
def logits(model: Any, form: Form, *, lower_items: bool = True, candidates: int = 40) -> Tensor:
    """The logits of a model in a form, item states as it encodes them in fp32."""
    inputs = random_inputs(LENGTHS, candidates=candidates)
    number = {torch.float64: torch.float32}
    items = model.encode_items(inputs.items.map(lambda t: t.to(number.get(t.dtype, t.dtype))))
    if lower_items:
        items = lowered_items(items, form.precision)
    history = type(inputs.history)(*(t.to(number.get(t.dtype, t.dtype)) for t in vars(inputs.history).values()))
    user = type(inputs.user)(inputs.user.categorical_BC, inputs.user.numeric_BF.float())
    score = logits_of(lowered(model, form.precision), form, device=CPU)
    return score(history, items.take(history.row_BT), user, items.take(inputs.candidate_BN))


@pytest.mark.parametrize("name", CONFIGS)
def test_bf16_scores_are_near_those_of_fp32_and_not_the_same(name: str) -> None:
    model = small_weights(name)
    exact, rounded = logits(model, EXACT), logits(model, BF16)
    assert rounded.dtype == torch.float32
    difference = (exact - rounded).abs().max()
    # 8 bits of mantissa: 2^-8 of the largest logit, in a few roundings.
    assert 0 < difference <= 8 * 2**-8 * max(1.0, float(exact.abs().max()))
    assert torch.equal(logits(model, EXACT), exact)


@torch.inference_mode()
def test_item_states_are_stored_rounded_on_a_gpu_alone_and_but_for_the_vectors() -> None:
    model: Any = small_weights("gesr")
    items = model.encode_items(random_inputs([1]).items.map(lambda t: t.float() if t.is_floating_point() else t))
    low = lowered_items(items, "bf16")
    assert (low.token_RD.dtype, low.vector_RD.dtype) == (torch.bfloat16, torch.float32)
    index = ItemIndex.build(torch.arange(len(items.vector_RD)))
    kept, _ = on_device(items, index, device=CPU, limit_bytes=None, precision="bf16")
    assert kept is items
    difference = (logits(model, BF16, lower_items=False) - logits(model, BF16)).abs().max()
    assert 0 < difference <= 4 * 2**-8


def test_lowering_leaves_the_given_model_as_it_is() -> None:
    model = small_weights("gesr")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    low = lowered(model, "bf16")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    kinds = {name: tensor.dtype for name, tensor in low.state_dict().items()}
    assert {kind for name, kind in kinds.items() if "uvqk" in name} == {torch.bfloat16}
    assert {kind for name, kind in kinds.items() if "project" in name} == {torch.float32}
    assert lowered(model, "fp32") is model
    # Where ages fall into buckets must not be rounded.
    assert not [name for name, buffer in low.named_buffers() if buffer.dtype == torch.bfloat16]


@compiles
@pytest.mark.slow
def test_compiled_scores_are_those_of_the_same_precision() -> None:
    model = small_weights("gesr of gating alone")
    plain, compiled = logits(model, EXACT), logits(model, Form("fp32", "on"))
    assert (plain - compiled).abs().max() <= 5e-5 * max(1.0, float(plain.abs().max()))


@torch.inference_mode()
def test_fp8_layers_score_near_fp32_where_they_are_large() -> None:
    torch.manual_seed(1)
    layer, small = nn.Linear(128, 64), nn.Linear(16, 16)
    assert Fp8Linear.suits(layer)
    assert not Fp8Linear.suits(small)
    assert not Fp8Linear.suits(nn.Linear(1_000, 100))
    model = nn.Sequential(nn.Sequential(layer, nn.SiLU()), small)
    low: Any = lowered(model, "fp8")
    assert isinstance(low[0][0], Fp8Linear)
    assert isinstance(low[1], nn.Linear)
    # What a history takes of a layer by itself.
    assert (low[0][0].weight.float() - layer.weight).abs().max() <= 2**-4 * layer.weight.abs().max()
    x = torch.randn(5, 7, 128) * torch.logspace(-3, 3, 7).unsqueeze(-1)
    found = low[0][0](x)
    assert found.shape == (5, 7, 64)
    # 3 bits of mantissa in either factor, summed over 128.
    assert ((found - layer(x)).abs().amax(-1) <= 0.1 * layer(x).abs().amax(-1)).all()


def test_fp8_is_for_newer_gpus() -> None:
    with pytest.raises(ConfigurationError, match="which only newer GPUs multiply"):
        logits_of(small_weights("two_tower"), Form("fp8"), device=CPU)


def test_graphs_are_for_gpus() -> None:
    with pytest.raises(ConfigurationError, match="which only a GPU has"):
        logits_of(small_weights("two_tower"), Form("fp32", "graphs"), device=CPU)


def test_forms_that_a_configuration_allows() -> None:
    assert forms_of("fp32", "off") == [EXACT]
    assert forms_of("auto", "off") == [EXACT, BF16, Form("fp8")]
    assert forms_of("bf16", "auto") == [BF16, Form("bf16", "on"), Form("bf16", "graphs")]


def row(scores: Sequence[tuple[int, float]], *, scored: int) -> dict[str, Any]:
    return {"ranked": [{"item_id": item, "score": score} for item, score in scores], "candidates_scored": scored}


def test_overlap_and_difference_by_hand() -> None:
    exact = [row([(1, 3.0), (2, 2.0)], scored=5), row([(7, 1.0), (8, 0.5)], scored=3), row([(4, 9.0)], scored=1)]
    found = [row([(1, 3.25), (3, 2.5)], scored=5), row([(8, 0.75), (7, 0.5)], scored=3), row([(4, 9.0)], scored=1)]
    # One of two kept, then both in another order; who has no more candidates than K keeps them all, and does not count.
    assert compare(exact, found, top_k=2) == (0.5, 0.75)
    assert compare(exact[2:], found[2:], top_k=2) == (0.0, 1.0)
    broken = [row([(1, float("nan")), (2, 2.0)], scored=5)]
    assert compare(exact[:1], broken, top_k=2)[0] == float("inf")


def test_the_fastest_form_that_keeps_the_overlap_is_chosen() -> None:
    trials = [
        Trial("fp32", "off", 4.0),
        Trial("bf16", "off", 2.0, 0.01, 0.99),
        Trial("bf16", "on", 1.0, 0.01, 0.90),
        Trial("fp32", "on", error="no compiler"),
    ]
    every = [t.form for t in trials]
    assert choose_form(trials, least_overlap=0.98, allowed=every) == BF16
    assert choose_form(trials, least_overlap=0.9, allowed=every) == Form("bf16", "on")
    assert choose_form(trials, least_overlap=0.995, allowed=every) == EXACT
    with pytest.raises(ConfigurationError, match=r"keeps 99\.50% of the best K .* bf16: 2\.000 s, 99\.00%"):
        choose_form(trials, least_overlap=0.995, allowed=[BF16])
    with pytest.raises(ConfigurationError, match="cannot be run here: no compiler"):
        choose_form(trials, least_overlap=0.0, allowed=[Form("fp32", "on")])


def test_requests_that_only_fill_up_a_graph_change_no_score() -> None:
    model = small_weights("gesr").eval()
    seen = []

    def watched(*given: Any) -> Tensor:
        seen.append(len(given[0].length_B))
        with torch.inference_mode():
            return logits_of(model, EXACT, device=CPU)(*given)

    whole = scorer(model, settings=replace(SETTINGS, compiled="graphs"), logits=watched)
    filled = [row["ranked"] for batch in whole.score(iter([requests()])) for row in batch.to_pylist()]
    plain = [row["ranked"] for batch in scorer(model).score(iter([requests()])) for row in batch.to_pylist()]
    assert set(seen) <= {1, 2, 4, 8}
    assert [[p["item_id"] for p in ranked] for ranked in filled] == [[p["item_id"] for p in r] for r in plain]


def test_trials_measure_each_form_and_report_what_cannot_be_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def task_scorer(task: ScoreShards, *, gpu: str | None = None) -> Scorer:
        model = lowered(small_weights("gesr"), task.settings.precision)
        return scorer(model, settings=task.settings)

    monkeypatch.setattr(trial_module, "task_scorer", task_scorer)
    task = ScoreShards("", "", "", "", SETTINGS, device="cpu", threads=1)
    forms = (EXACT, BF16, Form("fp32", "graphs"))
    exact, bf16, graphs = try_forms(task, forms, [requests()])
    assert (exact.form, exact.score_difference, exact.overlap, exact.error) == (EXACT, 0.0, 1.0, None)
    assert bf16.form == BF16
    assert 0 < bf16.score_difference < 0.5
    assert 0.5 < bf16.overlap <= 1
    assert min(exact.seconds, bf16.seconds) > 0
    assert graphs.error is not None
    assert "only a GPU" in graphs.error
    [batch] = TryForms(task, forms)(iter([requests()]))
    assert batch.schema.names == [column.split(" ")[0] for column in TRIAL_TYPE.split(", ")]
    assert [Trial(**entry).form for entry in batch.to_pylist()] == list(forms)
    assert not list(TryForms(task, forms)(iter([requests().slice(0, 0)])))
