"""What scoring took: the stats of the windows of a shard or of a run, put together. Driver only.

Workers write stats beside the first score row of each window (runtime/stats.py); only those of accepted attempts count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from pyspark.sql import Column, Row, functions as F

from gesr_core.names import Col

_STAGES = ("decode_s", "compute_s", "encode_s", "load_s")


@dataclass(frozen=True)
class Work:
    """Sums over windows, in the worker's own time; `peak_bytes` is the largest of any worker.

    `halved` lists what memory could not bear at once, as (shard, part of it, window in the part, micro-batch in the
    window, how often it was halved): given to the scorer again, it repeats the run bit for bit.
    """

    windows: int = 0
    requests: int = 0
    pairs: int = 0
    padded_pairs: int = 0
    events: int = 0
    padded_events: int = 0
    micro_batches: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    decode_s: float = 0.0
    compute_s: float = 0.0
    encode_s: float = 0.0
    load_s: float = 0.0
    loads: int = 0
    peak_bytes: int = 0
    devices: tuple[str, ...] = ()
    halved: tuple[tuple[int, int, int, int, int], ...] = field(default=())

    @staticmethod
    def aggregates() -> list[Column]:
        """Return the aggregates of staged rows that `of_row` reads."""
        stats = F.col(Col.STATS)
        summed = [F.sum(stats[name]).alias(name) for name in _SUMMED]
        halvings = F.struct(Col.SHARD, *(stats[name].alias(name) for name in (Col.PART, "window", "halved")))
        return [
            F.count(stats).alias("windows"),
            *summed,
            F.count_if(stats["load_s"] > 0).alias("loads"),
            F.max(stats["peak_bytes"]).alias("peak_bytes"),
            F.sort_array(F.collect_set(stats["device"])).alias("devices"),
            F.collect_list(F.when(F.size(stats["halved"]) > 0, halvings)).alias("halved"),
        ]

    @staticmethod
    def of_row(row: Row) -> Work:
        """Take up one row of `aggregates`."""
        places = [((of[Col.SHARD], of[Col.PART], of["window"]), of["halved"]) for of in row["halved"]]
        halved = sorted((*place, *cut) for place, cuts in places for cut in cuts)
        values = {name: row[name] or 0 for name in (*_SUMMED, "windows", "loads", "peak_bytes")}
        return Work(**values, devices=tuple(row["devices"]), halved=tuple(halved))

    @staticmethod
    def together(parts: Iterable[Work]) -> Work:
        """Add up the work of several shards."""
        parts = list(parts)
        total: dict[str, Any] = {
            name: sum(getattr(part, name) for part in parts) for name in (*_SUMMED, "windows", "loads")
        }
        devices = tuple(sorted({device for part in parts for device in part.devices}))
        halved = tuple(sorted(cut for part in parts for cut in part.halved))
        return Work(**total, peak_bytes=max((p.peak_bytes for p in parts), default=0), devices=devices, halved=halved)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Work:
        """Take back what `to_json` gave; a row of an earlier version knows nothing of it."""
        lists = {"devices": tuple(values.get("devices", ())), "halved": tuple(map(tuple, values.get("halved", ())))}
        return Work(**{**values, **lists})

    def __str__(self) -> str:
        """One line for the log."""
        seconds = sum(getattr(self, stage) for stage in _STAGES)
        shares = ", ".join(
            f"{stage.removesuffix('_s')} {getattr(self, stage) / max(seconds, 1e-9):.0%}" for stage in _STAGES
        )
        halved = f"; {len(self.halved)} micro-batches halved for want of memory" if self.halved else ""
        pairs_per_s = self.pairs / max(seconds, 1e-9)
        return (
            f"{self.pairs:,} pairs of {self.requests:,} requests in {seconds:.1f} s of workers' time on "
            f"{', '.join(self.devices) or 'no device'} ({pairs_per_s:,.0f} pairs/s a worker): {shares}; "
            f"padding {_padding(self.pairs, self.padded_pairs):.0%} of pairs, "
            f"{_padding(self.events, self.padded_events):.0%} of events; {self.bytes_in / 1e6:,.0f} MB in, "
            f"{self.bytes_out / 1e6:,.0f} MB out; model loaded {self.loads} times; "
            f"at most {self.peak_bytes / 1e6:,.0f} MB a worker{halved}"
        )


_NOT_SUMMED = ("windows", "loads", "peak_bytes", "devices", "halved")
_SUMMED = tuple(f.name for f in fields(Work) if f.name not in _NOT_SUMMED)


def _padding(real: int, padded: int) -> float:
    return 1 - real / padded if padded else 0.0
