"""Memory that does not suffice, provoked by a model that refuses what is too large, as an allocator does."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import Tensor

from gesr_core.errors import GesrError
from gesr_core.model.inputs import History, ItemState, UserFeatures
from gesr_core.runtime.cost import LiveBytes, request_bytes
from gesr_core.runtime.item_index import ItemIndex
from gesr_core.runtime.plan import ScorerSettings
from gesr_core.runtime.scorer import Scorer
from tests.models import GESR, random_inputs, random_model

CPU = torch.device("cpu")
SETTINGS = ScorerSettings(
    request_time_s=1_000_000,
    tasks=("a", "b"),
    score_weights=(1.0, 0.5),
    top_k=3,
    batch_pairs=64,
    plan_window_requests=100,
    history_buckets=(2, 4, 6),
    candidate_buckets=(8, 12),
)


class Cramped(torch.nn.Module):
    """A model on a device that bears only so many pairs at once; counts how often it had to refuse."""

    def __init__(self, model: Any, *, most_pairs: int, error: RuntimeError | None = None) -> None:
        super().__init__()
        self.model, self.most_pairs, self.refused = model, most_pairs, 0
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def encode_user(self, history: History, history_items: ItemState, user: UserFeatures) -> Any:
        return self.model.encode_user(history, history_items, user)

    def score(self, state: Any, items: ItemState) -> Tensor:
        if items.vector_RD.shape[0] * items.vector_RD.shape[1] > self.most_pairs:
            self.refused += 1
            raise self.error
        return self.model.score(state, items)


def scorer(model: Any, **changes: Any) -> Scorer:
    inputs = random_inputs([1])
    with torch.inference_mode():
        items = random_model(GESR).encode_items(inputs.items)
    return Scorer(
        model,
        items=items.map(lambda t: t.float() if t.is_floating_point() else t),
        index=ItemIndex.build(torch.arange(12)),
        encode_users=lambda batch: UserFeatures(
            torch.zeros(batch.num_rows, 3, dtype=torch.int64), torch.zeros(batch.num_rows, 1)
        ),
        actions=["buy", "view"],
        device=CPU,
        **{"settings": SETTINGS, **changes},
    )


def requests() -> pa.RecordBatch:
    """Seven users, all but one with a request; user 3 has three requests that are merged."""
    rows = [(user, list(range(user % 5)), list(range(12 - user))) for user in (0, 1, 2, 3, 3, 3, 4, 5, 6)]
    texts, numbers = pa.list_(pa.string()), pa.list_(pa.int64())
    return pa.RecordBatch.from_pydict(
        {
            "shard": pa.array([7] * len(rows), pa.int32()),
            "part": pa.array([2] * len(rows), pa.int32()),
            "user_id": pa.array([r[0] for r in rows], pa.int64()),
            "request": pa.array(range(len(rows)), pa.int32()),
            "history_item_id": pa.array([r[1] for r in rows], numbers),
            "history_time_s": pa.array([[999_000 - i for i in r[1]] for r in rows], numbers),
            "history_action": pa.array([["buy"] * len(r[1]) for r in rows], texts),
            "history_value": pa.array([[1.0] * len(r[1]) for r in rows], pa.list_(pa.float64())),
            "candidate_item_id": pa.array([r[2] for r in rows], numbers),
            "rejected": pa.array(
                [[] for _ in rows], pa.list_(pa.struct([("item_id", pa.int64()), ("reason", pa.string())]))
            ),
            "candidates_in": pa.array([len(r[2]) for r in rows], pa.int64()),
        }
    )


def scored(made: Scorer) -> tuple[list[dict[str, Any]], list[tuple[int, int]]]:
    """The score rows, and what was halved."""
    rows = [row for batch in made.score(iter([requests()])) for row in batch.to_pylist()]
    stats = [row.pop("stats") for row in rows]
    return rows, [(cut["micro_batch"], cut["halvings"]) for s in stats if s for cut in s["halved"]]


def model() -> Any:
    return random_model(GESR).float()


@pytest.mark.parametrize(
    ("most_pairs", "slices"), [(31, False), (12, False), (5, True), (1, True)],
    ids=["half", "one request", "slices of a request", "single candidates"],
)  # fmt: skip
def test_out_of_memory_halves_and_goes_on_to_the_same_ranking(most_pairs: int, slices: bool) -> None:
    calm, nothing = scored(scorer(model()))
    cramped = Cramped(model(), most_pairs=most_pairs)
    rows, halved = scored(scorer(cramped))
    assert cramped.refused
    assert not nothing
    assert halved
    for row, expected in zip(rows, calm, strict=True):
        assert [p["item_id"] for p in row["ranked"]] == [p["item_id"] for p in expected["ranked"]]
        scores = [(p["score"], p["logit_a"], p["logit_b"]) for p in row["ranked"]]
        for ours, theirs in zip(
            scores, ((p["score"], p["logit_a"], p["logit_b"]) for p in expected["ranked"]), strict=True
        ):
            assert ours == pytest.approx(theirs, rel=5e-5, abs=5e-5)


def test_what_was_halved_is_repeated_from_the_record_bit_for_bit() -> None:
    rows, halved = scored(scorer(Cramped(model(), most_pairs=12)))
    roomy = Cramped(model(), most_pairs=10_000)
    again, halved_again = scored(scorer(roomy, halved={(7, 2, 0): dict(halved)}))
    assert roomy.refused == 0
    assert again == rows
    assert halved_again == halved


def test_a_shape_that_was_too_large_is_not_tried_again() -> None:
    cramped = Cramped(model(), most_pairs=12)
    made = scorer(cramped)
    first, refused = scored(made), cramped.refused
    assert scored(made) == first
    assert cramped.refused == refused


def test_what_does_not_fit_at_all_is_a_clear_error() -> None:
    with pytest.raises(GesrError, match="no memory for one candidate of a request with"):
        scored(scorer(Cramped(model(), most_pairs=0)))


@pytest.mark.parametrize("message", ["CUDA error: an illegal memory access was encountered", "mat1 and mat2 shapes"])
def test_a_broken_device_ends_the_worker_and_nothing_is_tried_again(message: str) -> None:
    broken = Cramped(model(), most_pairs=0, error=RuntimeError(message))
    with pytest.raises(RuntimeError, match=message.split()[0]):
        scored(scorer(broken))
    assert broken.refused == 1


def test_the_cpu_allocator_is_out_of_memory_too() -> None:
    """The real one, asked for more than there is, in its own words."""
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator") as caught:
        torch.empty(1 << 60, dtype=torch.int8)
    rows, halved = scored(scorer(Cramped(model(), most_pairs=12, error=caught.value)))
    assert len(rows) == 7
    assert halved


def test_threads_change_no_bit() -> None:
    one, three = (scored(scorer(model(), overlap=overlap)) for overlap in (False, True))
    assert one == three


def test_live_bytes_are_those_held_at_once() -> None:
    with LiveBytes() as held:
        first = torch.zeros(1000)
        view = first[:10]
        first += 1
        second = torch.ones(500) + 1
        del first
        assert held.live == 4 * (1000 + 500)  # the view holds the whole of it
        del view
        assert held.live == 4 * 500
        del second
    # zeros, ones, and their sum for a moment
    assert held.peak == 4 * (1000 + 500 + 500)


def test_bytes_of_a_request_grow_with_its_candidates_and_its_history() -> None:
    made = scorer(model())
    user = UserFeatures(torch.zeros(1, 3, dtype=torch.int64), torch.zeros(1, 1))

    def counted(history_length: int, candidates: int) -> int:
        return request_bytes(
            made.model, items=made.items, user=user, history_length=history_length, candidates=candidates, device=CPU
        )

    assert counted(6, 400) == counted(6, 400)
    # Many candidates: what grows with them is nearly all there is.
    assert counted(6, 400) == pytest.approx(2 * counted(6, 200), rel=0.05)
    assert counted(6, 400) > counted(2, 400)
