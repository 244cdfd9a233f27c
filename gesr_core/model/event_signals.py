"""Signals derived from a history's events: what the configuration declares beside the tables' columns (gesr.md 1.3).

That the input layer derives new signals, such as a skipped video, is the paper's; the kinds, and that each enters the
event's token as an embedding, are ours. A signal belongs to an event, never to a pair: it follows from the history and
the items' states alone, so that `encode_user` gives it once a request.

Legend: R items, B requests, T history positions, D model width, V item values that signals compare with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal, NamedTuple

import torch
from torch import Tensor, nn

from gesr_core.model.embeddings import embedding
from gesr_core.model.inputs import History, ItemFeatures
from gesr_core.ops.ages import bucket_ages, log_edges_s
from gesr_core.ops.repeats import previous_same

# Name of what `of_items` keeps.
RAW: Final = "raw_RV"

SignalKind = Literal["below_share", "repeat", "days_since_same"]


class EventSignal(NamedTuple):
    """A derived signal; `share` and `value` (a column of `ItemFeatures.raw_RV`) are for `below_share` alone."""

    kind: SignalKind
    share: float = 0.0
    value: int = 0


class EventSignals(nn.Module):
    """The declared signals of a history's events, each an embedding that is added to the event's token.

    - `below_share`: 2 where the event's value lies below `share` times the item's raw value, 1 where it does not,
      0 where one of them is missing (an item's value must also be above 0).
    - `repeat`: 1 where the same item occurs earlier in this history, as the model sees it; else 0.
    - `days_since_same`: the log-spaced bucket of the time since the previous event with the same item, plus 1; 0 where
      there is none.

    Items that are not in the table are not told apart: none of them repeats another.
    """

    edges_s: Tensor

    def __init__(self, *, signals: Sequence[EventSignal], age_buckets: int, width: int) -> None:
        super().__init__()
        self.signals = tuple(EventSignal(*signal) for signal in signals)
        rows = {"below_share": 3, "repeat": 2, "days_since_same": age_buckets + 1}
        self.tables = nn.ModuleList(embedding(rows[signal.kind], width) for signal in self.signals)
        self.register_buffer("edges_s", torch.tensor(log_edges_s(age_buckets)), persistent=False)

    def of_items(self, items: ItemFeatures) -> dict[str, Tensor]:
        """Return what the signals need of R items later, for `ItemState.extra`; nothing where none compares."""
        return {RAW: items.raw_RV} if any(signal.kind == "below_share" for signal in self.signals) else {}

    def indices(self, history: History, kept: Mapping[str, Tensor]) -> list[Tensor]:
        """Return each signal's index [B, T]; `kept` is `ItemState.extra`, gathered by `history.row_BT`."""
        # Sorted once for all signals, and only where one of them asks.
        asks = any(signal.kind != "below_share" for signal in self.signals)
        previous_BT = previous_same(history.row_BT) if asks else history.row_BT
        found = []
        for signal in self.signals:
            if signal.kind == "below_share":
                found.append(_below_share(history.value_BT, signal.share, kept[RAW][..., signal.value]))
            elif signal.kind == "repeat":
                found.append((previous_BT >= 0).long())
            else:
                found.append(self._since(history.age_s_BT, previous_BT))
        return found

    def forward(self, event_BTD: Tensor, history: History, kept: Mapping[str, Tensor]) -> Tensor:
        """Return event_BTD with the signals' embeddings added."""
        for table, index_BT in zip(self.tables, self.indices(history, kept), strict=True):
            event_BTD = event_BTD + table(index_BT)
        return event_BTD

    def _since(self, age_s_BT: Tensor, previous_BT: Tensor) -> Tensor:
        elapsed_s_BT = age_s_BT.gather(1, previous_BT.clamp_min(0)) - age_s_BT
        return torch.where(previous_BT >= 0, bucket_ages(elapsed_s_BT, self.edges_s) + 1, 0)


def _below_share(value_BT: Tensor, share: float, raw_BT: Tensor) -> Tensor:
    known_BT = value_BT.isfinite() & (raw_BT > 0)
    return torch.where(known_BT, 1 + (value_BT < share * raw_BT).long(), 0)
