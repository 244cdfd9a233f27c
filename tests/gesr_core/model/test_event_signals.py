"""Derived signals by hand, and that padding and the batch do not change them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from gesr_core.model.event_signals import RAW, EventSignal, EventSignals
from gesr_core.model.inputs import History
from gesr_core.ops.ages import bucket_ages
from tests.models import CONFIGS, random_inputs, random_model, scores

DAY_S = 86_400


def history(rows: list[int], ages_s: list[int], values: list[float]) -> History:
    """One history without padding."""
    return History(
        torch.tensor([rows]),
        torch.tensor([ages_s], dtype=torch.float32),
        torch.ones(1, len(rows), dtype=torch.int64),
        torch.tensor([values]),
        torch.tensor([len(rows)]),
    )


def indices(signal: EventSignal, events: History, raw: list[float]) -> list[int]:
    """The signal's index at each event."""
    module = EventSignals(signals=[signal], age_buckets=8, width=2)
    [index_BT] = module.indices(events, {RAW: torch.tensor([raw]).unsqueeze(-1)})
    return index_BT[0].tolist()


def test_a_value_below_its_share_is_told_from_one_above_and_from_a_missing_one() -> None:
    events = history([3, 4, 5, 6, -1], [5, 4, 3, 2, 1], [2.9, 3.0, float("nan"), 1.0, 1.0])
    # Items of length 10; the fourth's is missing, the fifth is not in the table.
    assert indices(EventSignal("below_share", 0.3, 0), events, [10, 10, 10, 0, 0]) == [2, 1, 0, 0, 0]


def test_a_repeat_is_the_same_item_earlier_in_the_history() -> None:
    events = history([3, -1, 4, 3, -1, 3], [6, 5, 4, 3, 2, 1], [1.0] * 6)
    assert indices(EventSignal("repeat"), events, [0] * 6) == [0, 0, 0, 1, 0, 1]


def test_the_days_since_the_same_item_are_those_since_its_latest_event() -> None:
    events = history([3, 4, 3, 3], [210 * DAY_S, 20 * DAY_S, 10 * DAY_S, 9 * DAY_S], [1.0] * 4)
    module = EventSignals(signals=[EventSignal("days_since_same")], age_buckets=8, width=2)
    long, short = (bucket_ages(torch.tensor(float(d * DAY_S)), module.edges_s).item() + 1 for d in (200, 1))
    assert long != short
    assert module.indices(events, {})[0].tolist() == [[0, 0, long, short]]


def test_signals_do_not_depend_on_padding_nor_on_the_other_requests() -> None:
    kinds = [EventSignal("below_share", 0.3, 0), EventSignal("repeat"), EventSignal("days_since_same")]
    module = EventSignals(signals=kinds, age_buckets=8, width=2)
    lengths = [0, 1, 6, 4]
    inputs, padded = random_inputs(lengths, seed=4), random_inputs(lengths, seed=4, padding=3)

    def found(events: History) -> list[Tensor]:
        raw = torch.where(events.row_BT.unsqueeze(-1) < 0, 0, inputs.items.raw_RV[events.row_BT.clamp_min(0)])
        return module.indices(events, {RAW: raw})

    together, alone = found(inputs.history), found(padded.history)
    assert any((index > 0).any() for index in together)
    for b, length in enumerate(lengths):
        one = History(*(t[b : b + 1] if t.dim() == 1 else t[b : b + 1, :length] for t in vars(inputs.history).values()))
        for whole, more, single in zip(together, alone, found(one), strict=True):
            assert torch.equal(whole[b, :length], more[b, :length])
            assert torch.equal(whole[b, :length], single[0])


def test_every_signal_reaches_every_models_score() -> None:
    inputs = random_inputs([6])
    longer = replace(inputs, items=replace(inputs.items, raw_RV=inputs.items.raw_RV + 100))
    for config in CONFIGS.values():
        model = random_model(config)
        before = scores(model, inputs)
        assert not torch.equal(scores(model, longer), before)
        for table in model.events.signals.tables:
            torch.nn.init.normal_(table.weight)
            after = scores(model, inputs)
            assert not torch.equal(after, before)
            before = after
