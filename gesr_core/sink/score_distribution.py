"""How the scores of a publication are distributed, and how far that of another day has moved. Driver only, pure.

The bins are those of the reference: about equally many of its pairs are in each. They are kept with it in the ledger.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

# Scores are counted on a grid of 1/64, between -LARGEST and LARGEST.
BINS_PER_UNIT: Final = 64
LARGEST: Final = 1_000.0
_BINS: Final = 10
# A share of 0 would move the index to infinity.
_LEAST_SHARE: Final = 1e-4


@dataclass(frozen=True)
class ScoreDistribution:
    """Counts of ranked pairs on the grid, and the places on it that part them into bins of about equal counts.

    `edges` [b - 1] ascend; bin i holds what lies from edges[i - 1] (included) to edges[i] (excluded).
    """

    counts: Mapping[int, int]
    edges: tuple[int, ...]

    @property
    def pairs(self) -> int:
        """How many pairs were counted."""
        return sum(self.counts.values())

    @staticmethod
    def of(counts: Mapping[int, int]) -> ScoreDistribution:
        """Part counts on the grid into at most ten bins."""
        total, seen = sum(counts.values()), 0
        edges: list[int] = []
        decile = 1
        for place in sorted(counts):
            # Where the next decile has been reached, a bin begins.
            if seen * _BINS >= total * decile:
                edges.append(place)
                decile = seen * _BINS // total + 1
            seen += counts[place]
        if counts and not edges:
            # All in one place of the grid: what lies beside it belongs to other bins.
            edges = [min(counts), max(counts) + 1]
        return ScoreDistribution(dict(counts), tuple(edges))

    def shares(self, edges: tuple[int, ...]) -> list[float]:
        """Return the share of the pairs in each of the bins that `edges` part."""
        found = [0] * (len(edges) + 1)
        for place, count in self.counts.items():
            found[bisect_right(edges, place)] += count
        return [count / max(1, self.pairs) for count in found]

    def to_json(self) -> dict[str, Any]:
        """Return it for the ledger: bins and shares, with their edges as scores."""
        edges = [edge / BINS_PER_UNIT for edge in self.edges]
        return {"pairs": self.pairs, "edges": edges, "shares": self.shares(self.edges)}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> ScoreDistribution:
        """Take back a distribution that serves as a reference: the counts of its bins, each at the bin's beginning."""
        edges = tuple(round(edge * BINS_PER_UNIT) for edge in values["edges"])
        places = [edges[0] - 1 if edges else 0, *edges]
        counts = {place: round(share * values["pairs"]) for place, share in zip(places, values["shares"], strict=True)}
        return ScoreDistribution(counts, edges)


def population_stability(reference: ScoreDistribution, found: ScoreDistribution) -> float:
    """Return the population stability index: the sum over the reference's bins of (q - p) ln(q / p).

    p and q are the shares of the reference and of what was found, of at least 0.0001 each (ours). 0: the same; from
    0.25 on, by a custom of credit scoring, the population has changed.
    """
    shares = zip(reference.shares(reference.edges), found.shares(reference.edges), strict=True)
    clipped = [(max(p, _LEAST_SHARE), max(q, _LEAST_SHARE)) for p, q in shares]
    return sum((q - p) * math.log(q / p) for p, q in clipped)
