"""Categories of one value and of lists."""

from __future__ import annotations

import torch

from gesr_core.model.towers import Categories


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
