"""What scoring took, put together over shards."""

from __future__ import annotations

import json

from gesr_core.sink.work import Work

FIRST = Work(
    windows=2, requests=30, pairs=800, padded_pairs=1000, events=90, padded_events=100, micro_batches=4,
    bytes_in=5_000_000, bytes_out=1_000_000, decode_s=1.0, compute_s=7.0, encode_s=1.0, load_s=1.0, loads=1,
    peak_bytes=70_000_000, devices=("cpu",), halved=((3, 0, 0, 1, 2),),
)  # fmt: skip
SECOND = Work(
    pairs=200, padded_pairs=250, compute_s=10.0, peak_bytes=90_000_000, devices=("cuda",), halved=((1, 4, 0, 0, 1),)
)


def test_work_survives_the_ledger() -> None:
    assert Work.from_json(json.loads(json.dumps(FIRST.to_json()))) == FIRST
    assert Work.from_json({}) == Work()


def test_shards_add_up_and_the_largest_peak_counts() -> None:
    both = Work.together([FIRST, SECOND])
    assert (both.pairs, both.padded_pairs, both.compute_s, both.requests) == (1000, 1250, 17.0, 30)
    assert both.peak_bytes == 90_000_000
    assert both.devices == ("cpu", "cuda")
    assert both.halved == ((1, 4, 0, 0, 1), (3, 0, 0, 1, 2))
    assert Work.together([]) == Work()


def test_one_line_says_where_the_time_went() -> None:
    line = str(Work.together([FIRST, SECOND]))
    for part in (
        "1,000 pairs of 30 requests in 20.0 s of workers' time on cpu, cuda (50 pairs/s a worker)",
        "decode 5%, compute 85%, encode 5%, load 5%",
        "padding 20% of pairs, 10% of events; 5 MB in, 1 MB out; model loaded 1 times; at most 90 MB a worker",
        "2 micro-batches halved",
    ):
        assert part in line
    assert "halved" not in str(Work())
