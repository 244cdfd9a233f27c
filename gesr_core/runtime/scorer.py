"""Arrow request rows in, Arrow score rows out: decode, plan, score, best K, encode. Runs in a Spark Python worker or a
plain loop; no JVM.

A repeated run gives the same bits: what is scored together follows from the requests and recorded settings (plan.py),
also after memory ran out, because how often a micro-batch was halved is recorded, and can be given again.

Legend: B requests, N candidates, K kept candidates, S tasks; `_P` pairs of a window, `_X` selected pairs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar, cast

import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.profiler import record_function

from gesr_core.errors import GesrError
from gesr_core.model.build import Model
from gesr_core.model.inputs import ItemState
from gesr_core.names import Col
from gesr_core.runtime.collate import JaggedRequests, UserEncoder, decode, pad
from gesr_core.runtime.cost import request_bytes
from gesr_core.runtime.forms import Form, Logits, logits_of
from gesr_core.runtime.item_index import ItemIndex
from gesr_core.runtime.plan import (
    MicroBatch,
    ScorerSettings,
    plan_micro_batches,
    power_of_two_requests,
    windows,
)
from gesr_core.runtime.results import Selected, encode
from gesr_core.runtime.stats import WindowStats, peak_bytes

log = logging.getLogger(__name__)

# How often each micro-batch was halved, by its number in the window; by shard, part and number of the window in it.
Halved = Mapping[tuple[int, int, int], Mapping[int, int]]
_T = TypeVar("_T")


@dataclass(frozen=True)
class _Decoded:
    """A window on the device, its plan, and what is known of it so far."""

    rows: pa.RecordBatch
    shard: int
    jagged: JaggedRequests
    count_B: Tensor
    starts_B: Tensor
    plan: Sequence[MicroBatch]
    stats: WindowStats


@dataclass(frozen=True)
class _Best:
    """The best K candidates of each request of a micro-batch, on the device; only those that are `known` count."""

    micro_batch: MicroBatch
    place_BK: Tensor
    known_BK: Tensor
    score_BK: Tensor
    logits_BKS: Tensor

    def selected(self, starts_B: Tensor) -> Selected:
        """Bring them to the host; `starts_B` are the numbers of the requests' first pairs."""
        row_X, rank_X = self.known_BK.cpu().nonzero(as_tuple=True)
        request_X = self.micro_batch.select[row_X]
        place_X = self.place_BK.cpu()[row_X, rank_X] + self.micro_batch.first
        return Selected(
            request_X,
            starts_B[request_X] + place_X,
            self.score_BK.cpu()[row_X, rank_X],
            self.logits_BKS.cpu()[row_X, rank_X],
        )


class Scorer:
    """A model with its item states, ready to score request rows."""

    def __init__(
        self,
        model: nn.Module,
        *,
        items: ItemState,
        index: ItemIndex,
        encode_users: UserEncoder,
        actions: Sequence[str],
        settings: ScorerSettings,
        device: torch.device,
        overlap: bool | None = None,
        halved: Halved | None = None,
        load_s: float = 0.0,
        counted_bytes: dict[tuple[int, int], int] | None = None,
        logits: Logits | None = None,
    ) -> None:
        """Take a model and its item states.

        Args:
            model: composes `encode_user` and `score` (model.build.Model), stored as the settings' form has it.
            items: states of the catalogue, on the device; or in host memory, and gathered for each micro-batch.
            index: where each item's state is; ids are searched for on its device.
            encode_users: turns the user feature columns into vocabulary indices and normalised numbers.
            actions: the vocabulary of actions.
            settings: what the scores depend on besides.
            device: where the model runs.
            overlap: decode and encode in threads while the device computes; by default where it is not the CPU itself,
                and replays no CUDA graphs.
            halved: how often to halve which micro-batches, as `WindowStats` of an earlier run recorded it.
            load_s: what loading all this took, for the stats.
            counted_bytes: what requests of a shape need with this model, as other scorers counted it; added to.
            logits: what another scorer of this model and form compiled.
        """
        # nn.Module types its attributes as tensors; what a model is stands in model.build.Model.
        self.model = cast(Model, model.eval().to(device))
        self.items = items
        self.index = index
        self.encode_users = encode_users
        self.actions = tuple(actions)
        self.settings = settings
        self.device = device
        # CUDA graphs belong to the thread that recorded them.
        ahead = device.type != "cpu" and settings.compiled != "graphs"
        self.overlap = ahead if overlap is None else overlap
        self.halved = halved or {}
        self.load_s = load_s
        self._logits = logits or logits_of(model, Form(settings.precision, settings.compiled), device=device)
        self.weight_S = torch.tensor(settings.score_weights, dtype=torch.float32, device=device)
        self._request_bytes = {} if counted_bytes is None else counted_bytes
        # Shapes that memory could not bear: they are halved from the start from then on.
        self._halvings: dict[tuple[int, int], int] = {}

    def score(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield one row per user: user, shard, best K candidates, what was rejected, counts, and stats (stats.py)."""
        for _, scored in self.score_windows(batches):
            yield scored

    def score_windows(self, batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]:
        """Yield each window of request rows with its score rows, in their order."""
        numbered = _numbered(windows(batches, requests=self.settings.plan_window_requests))
        step = _ahead if self.overlap else iter
        decoded = step(self._decode(window, number) for window, number in numbered)
        computed = step((window, self._compute(window)) for window in decoded)
        for window, selected in computed:
            yield window.rows, self._encode(window, selected)

    @torch.inference_mode()
    @record_function("decode")
    def _decode(self, rows: pa.RecordBatch, number: int) -> _Decoded:
        self._enter_device()
        started_s = time.perf_counter()
        jagged = decode(
            rows,
            index=self.index,
            encode_users=self.encode_users,
            actions=self.actions,
            request_time_s=self.settings.request_time_s,
        )
        length_B, count_B = jagged.history_length_B, jagged.count_B
        plan = plan_micro_batches(length_B, count_B, settings=self.settings, bytes_of=self._bytes_of(jagged))
        shard, part = _part(rows)
        stats = WindowStats(
            number,
            part=part,
            device=str(self.device),
            requests=rows.num_rows,
            pairs=int(count_B.sum()),
            padded_pairs=sum(len(m.select) * m.candidates for m in plan),
            events=sum(int(length_B[m.select].clamp_max(m.history_length).sum()) for m in plan),
            padded_events=sum(len(m.select) * m.history_length for m in plan),
            micro_batches=len(plan),
            bytes_in=rows.nbytes,
            load_s=self.load_s,
        )
        self.load_s = 0.0
        decoded = _Decoded(rows, shard, jagged.to(self.device), count_B, jagged.candidate_offsets[:-1], plan, stats)
        stats.decode_s = time.perf_counter() - started_s
        return decoded

    @torch.inference_mode()
    @record_function("compute")
    def _compute(self, window: _Decoded) -> Selected:
        """Score the micro-batches; nothing waits for the device before all of them are under way."""
        self._enter_device()
        started_s = time.perf_counter()
        recorded = self.halved.get((window.shard, window.stats.part, window.stats.window), {})
        best: list[_Best] = []
        for number, micro_batch in enumerate(window.plan):
            parts, halvings = self._within_memory(window.jagged, micro_batch, recorded=recorded.get(number))
            best += parts
            if halvings:
                window.stats.halved.append((number, halvings))
        selected = Selected.together([b.selected(window.starts_B) for b in best], tasks=len(self.settings.tasks))
        window.stats.compute_s = time.perf_counter() - started_s
        return selected

    @record_function("encode")
    def _encode(self, window: _Decoded, selected: Selected) -> pa.RecordBatch:
        started_s, stats = time.perf_counter(), window.stats
        known_P = (window.jagged.candidate_row_P >= 0).cpu().numpy()
        scored = encode(window.rows, selected, known_P=known_P, count_B=window.count_B.numpy(), settings=self.settings)
        stats.bytes_out, stats.peak_bytes = scored.nbytes, peak_bytes(self.device)
        stats.encode_s = time.perf_counter() - started_s
        columns = [*scored.columns, stats.column(scored.num_rows)]
        return pa.RecordBatch.from_arrays(columns, names=[*scored.schema.names, Col.STATS])

    def _within_memory(
        self, jagged: JaggedRequests, micro_batch: MicroBatch, *, recorded: int | None
    ) -> tuple[list[_Best], int]:
        """Score a micro-batch, halved until memory bears it; return how often it was.

        Raises:
            GesrError: not even one candidate of one request fits.
        """
        shape = (micro_batch.history_length, micro_batch.candidates)
        known = self._halvings.get(shape, 0) if recorded is None else recorded
        halvings = min(known, micro_batch.most_halvings)
        while (best := self._unless_out_of_memory(jagged, micro_batch.pieces(halvings))) is None:
            if halvings == micro_batch.most_halvings:
                raise GesrError(
                    f"{self.device} has no memory for one candidate of a request with {shape[0]} events: give workers "
                    "more of it (fewer workers on a device), or lower histories.max_events"
                )
            halvings += 1
            self._halvings[shape] = halvings
            log.warning(
                "out of memory on %s with %d requests of %d events and %d candidates: halved %d times now",
                self.device, len(micro_batch.select), *shape, halvings,
            )  # fmt: skip
        return best, halvings

    def _unless_out_of_memory(self, jagged: JaggedRequests, pieces: Sequence[MicroBatch]) -> list[_Best] | None:
        try:
            return [self._best(jagged, piece) for piece in pieces]
        except RuntimeError as err:
            # Anything else, such as a broken device, ends the worker: Spark runs the task elsewhere.
            if not is_out_of_memory(err):
                raise
        # Only now, without the traceback that holds its tensors, is the memory free.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _best(self, jagged: JaggedRequests, micro_batch: MicroBatch) -> _Best:
        """Score a micro-batch and keep each request's best K known candidates; ties go to the smaller item id."""
        logits_BNS, known_BN = self.logits(jagged, micro_batch)
        score_BN = (logits_BNS @ self.weight_S).masked_fill(~known_BN, -torch.inf)
        k = min(self.settings.top_k, score_BN.shape[1])
        # Candidates are sorted by item id and the sort is stable: torch.topk would break ties at will.
        place_BK = score_BN.sort(dim=1, descending=True, stable=True).indices[:, :k]
        place_BKS = place_BK.unsqueeze(-1).expand(-1, -1, logits_BNS.shape[-1])
        return _Best(
            micro_batch,
            place_BK=place_BK,
            known_BK=known_BN.gather(1, place_BK),
            score_BK=score_BN.gather(1, place_BK),
            logits_BKS=logits_BNS.gather(1, place_BKS),
        )

    def logits(self, jagged: JaggedRequests, micro_batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Return the logits [B, N, S] of a micro-batch and which candidates [B, N] are items of the table."""
        select, asked = micro_batch.select, len(micro_batch.select)
        if self.settings.compiled == "graphs":
            select = power_of_two_requests(select)
        requests = pad(
            jagged,
            select.to(self.device),
            history_length=micro_batch.history_length,
            candidates=micro_batch.candidates,
            first_candidate=micro_batch.first,
        )
        logits_BNS = self._logits(
            requests.history,
            self._take(requests.history.row_BT),
            requests.user,
            self._take(requests.candidate_row_BN),
        )
        return logits_BNS[:asked], requests.candidate_row_BN[:asked] >= 0

    def _take(self, rows: Tensor) -> ItemState:
        at = self.items.vector_RD.device
        if at == self.device:
            return self.items.take(rows)
        return self.items.take(rows.to(at)).map(lambda tensor: tensor.to(self.device))

    def _enter_device(self) -> None:
        """Make this thread's kernels run on the device: each thread has a current one of its own."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)

    def _bytes_of(self, jagged: JaggedRequests) -> Callable[[int, int], int]:
        """Return what counts a request of a shape; each shape is counted once."""

        def counted(history_length: int, candidates: int) -> int:
            shape = (history_length, candidates)
            if shape not in self._request_bytes:
                self._request_bytes[shape] = request_bytes(
                    self.model,
                    items=self.items,
                    user=jagged.user,
                    history_length=history_length,
                    candidates=candidates,
                    device=self.device,
                    precision=self.settings.precision,
                )
            return self._request_bytes[shape]

        return counted


def is_out_of_memory(error: RuntimeError) -> bool:
    """Say whether an error is want of memory, on a GPU or in a CPU's allocator."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def is_broken_device(error: BaseException) -> bool:
    """Say whether a GPU cannot be used any more by this process, whatever is asked of it."""
    return isinstance(error, RuntimeError) and "CUDA error" in str(error) and not is_out_of_memory(error)


def _numbered(cut: Iterable[pa.RecordBatch]) -> Iterator[tuple[pa.RecordBatch, int]]:
    """Number the windows of each part of a shard from 0."""
    former, number = None, 0
    for window in cut:
        number = number + 1 if _part(window) == former else 0
        former = _part(window)
        yield window, number


def _part(window: pa.RecordBatch) -> tuple[int, int]:
    """Return the shard and the part of it that a window is of."""
    return window.column(Col.SHARD)[0].as_py(), window.column(Col.PART)[0].as_py()


def _ahead(items: Iterable[_T]) -> Iterator[_T]:
    """Yield the items, while a thread makes the next one."""
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, iterator, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, iterator, end)
            yield cast(_T, item)
