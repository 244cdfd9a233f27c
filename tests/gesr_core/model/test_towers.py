"""Categories of one value and of lists; the profile of a history."""

from __future__ import annotations

import torch

from gesr_core.model.inputs import History
from gesr_core.model.towers import Categories, HistoryProfile
from gesr_core.ops.ages import bucket_ages


def test_a_list_is_the_mean_of_its_values_and_an_empty_one_is_zeros() -> None:
    categories = Categories(sizes=[3, 5], width=2, columns=[1, 3])
    single, lists = (parameter.detach() for parameter in categories.parameters())
    index_RC = torch.tensor([[2, 4, 1, 0], [0, 0, 3, 0], [1, 0, 0, 0]])
    found = categories(index_RC)
    torch.testing.assert_close(found[0], torch.cat([single[2], (lists[4] + lists[1]) / 2]))
    torch.testing.assert_close(found[1], torch.cat([single[0], lists[3]]))
    torch.testing.assert_close(found[2], torch.cat([single[1], torch.zeros(2)]))
    assert categories.width_out == found.shape[-1] == 4


def test_the_place_of_a_value_in_its_list_does_not_matter() -> None:
    categories = Categories(sizes=[5], width=2, columns=[3])
    torch.testing.assert_close(categories(torch.tensor([[4, 1, 0]])), categories(torch.tensor([[0, 4, 1]])))


def test_no_value_learns_nothing() -> None:
    categories = Categories(sizes=[5], width=2, columns=[3])
    categories(torch.tensor([[4, 0, 0], [0, 0, 0]])).sum().backward()
    gradient = next(categories.parameters()).grad
    assert gradient is not None
    assert gradient.abs().sum(1).nonzero().flatten().tolist() == [4]


def test_a_profile_counts_events_and_different_times_of_each_age() -> None:
    profile = HistoryProfile(age_buckets=4)
    old, new = 40_000_000.0, 1.0
    # Two events of one old time and one of another, one new event; a history that is empty; padding in both.
    age_s_BT = torch.tensor([[old, old, old - 9.0, new, new], [new, new, new, new, new]])
    history = a_history(age_s_BT, length_B=torch.tensor([4, 0]))
    found = profile(history)
    events, times = found[0].expm1().round().chunk(2)
    buckets = bucket_ages(age_s_BT[0], profile.edges_s)
    assert buckets[0] == buckets[2] != buckets[3]
    assert (events[buckets[0]], events[buckets[3]], events.sum()) == (3, 1, 4)
    assert (times[buckets[0]], times[buckets[3]], times.sum()) == (2, 1, 3)
    assert found[1].tolist() == [0.0] * profile.width_out == [0.0] * 8


def test_a_profile_does_not_depend_on_the_padding() -> None:
    profile = HistoryProfile(age_buckets=8)
    age_s_BT = torch.tensor([[9e6, 5e5, 5e5]])
    wide = torch.cat([age_s_BT, torch.full((1, 5), 5e5)], dim=1)
    length_B = torch.tensor([3])
    assert torch.equal(profile(a_history(age_s_BT, length_B=length_B)), profile(a_history(wide, length_B=length_B)))


def a_history(age_s_BT: torch.Tensor, *, length_B: torch.Tensor) -> History:
    nothing_BT = torch.zeros_like(age_s_BT, dtype=torch.int64)
    return History(
        row_BT=nothing_BT, age_s_BT=age_s_BT, action_BT=nothing_BT, value_BT=age_s_BT * 0.0, length_B=length_B
    )
