"""Ray Data as a rival of `score_stage`, in an environment of its own: answers how long each asked-for run took.

Standard input: one JSON line a run, {"users": n, "batch": n}; standard output: one JSON line {"seconds": s} each.
"""

from __future__ import annotations

import json
import logging
import pickle
import sys
import time
from pathlib import Path

import ray
from ray.data.expressions import col

from benchmarks.plain import COLUMNS, BestOfFrames


def main(rows: str, pickled: str) -> None:
    """Answer until the input ends."""
    task = pickle.loads(Path(pickled).read_bytes())
    # One core, as the others have.
    ray.init(num_cpus=1, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    for line in sys.stdin:
        asked = json.loads(line)
        best = BestOfFrames(task, asked["batch"])
        # One block, as there is one core: more of them would keep the read from fusing with the map.
        read = ray.data.read_parquet(rows, override_num_blocks=1)
        read = read.filter(expr=col("user_id") < asked["users"]).select_columns(list(COLUMNS))
        scored = read.map_batches(best.of, batch_format="pandas", batch_size=None)
        started_s = time.perf_counter()
        for _ in scored.iter_internal_ref_bundles():
            pass
        # On a line of its own, whatever Ray printed before it.
        print("\n" + json.dumps({"seconds": time.perf_counter() - started_s}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
