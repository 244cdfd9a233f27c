"""Log-spaced age buckets."""

from __future__ import annotations

import pytest
import torch

from gesr_core.ops.ages import MAX_AGE_S, MIN_AGE_S, bucket_ages, log_edges_s


@pytest.mark.parametrize("buckets", [3, 16, 32])
def test_edges_rise_from_a_minute_to_the_longest_age(buckets: int) -> None:
    edges = log_edges_s(buckets)
    assert len(edges) == buckets - 1
    assert edges == sorted(set(edges))
    assert (edges[0], edges[-1]) == (MIN_AGE_S, MAX_AGE_S)


@pytest.mark.parametrize(
    ("age_s", "bucket"), [(-5, 0), (0, 0), (59, 0), (60, 1), (34_000_000, 1), (MAX_AGE_S, 2), (10 * MAX_AGE_S, 2)]
)
def test_an_age_falls_into_the_bucket_that_its_edge_opens(age_s: int, bucket: int) -> None:
    edges_s = torch.tensor(log_edges_s(3))
    assert bucket_ages(torch.tensor([age_s]), edges_s).tolist() == [bucket]
    assert bucket_ages(torch.tensor([float(age_s)]), edges_s).tolist() == [bucket]


@pytest.mark.parametrize("buckets", [3, 32, 200, 400])
def test_many_ages_fall_into_the_buckets_that_a_search_finds(buckets: int) -> None:
    edges_s = torch.tensor(log_edges_s(buckets))
    edge_s, drawn = edges_s.float(), torch.Generator().manual_seed(1)
    age_s = torch.cat(
        [
            torch.rand(1 << 17, generator=drawn) * 1.1 * MAX_AGE_S - 1_000,
            *(edge_s, edge_s.nextafter(torch.tensor(0.0)), edge_s.nextafter(torch.tensor(torch.inf))),
            torch.tensor([0.0, -0.0, -1.0, 1e-30, torch.inf, -torch.inf, 3e38]),
        ]
    )
    expected = torch.bucketize(age_s, edge_s, right=True)
    assert torch.equal(bucket_ages(age_s, edges_s), expected)
    # Also in a tensor that does not lie in one piece.
    assert torch.equal(bucket_ages(age_s.expand(2, -1).t(), edges_s), expected.expand(2, -1).t())


def test_too_few_buckets_are_an_error() -> None:
    with pytest.raises(ValueError, match="2 age buckets: at least 3"):
        log_edges_s(2)
