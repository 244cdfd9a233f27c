"""Fit EASE or SASRec of RecTools and score given pairs. Runs in an environment of its own (requirements-rectools.txt).

    rectools_scores.py SETTINGS.json

reads what the settings name and writes one value per pair, in the order of the pairs; it knows nothing of the project.
Items with too few events in the training part have no value: the pair gets null.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from rectools import Columns
from rectools.dataset import Dataset, IdMap, Interactions
from rectools.models import EASEModel, SASRecModel

_BLOCK_USERS = 256


def main(path: str) -> None:
    """Fit once for each ds and each choice, and write the values."""
    settings = json.loads(Path(path).read_text())
    fitted = _fit(settings)
    values = _score(fitted, settings)
    pq.write_table(pa.table({"value": pa.array(values, from_pandas=True)}), settings["out"])


def _fit(settings: dict[str, Any]) -> tuple[Any, Dataset]:
    events = _interactions(pq.read_table(settings["train"]))
    counts = events[Columns.Item].value_counts()
    events = events[events[Columns.Item].isin(counts[counts >= settings["min_item_events"]].index)]
    dataset = Dataset.construct(events)
    if settings["model"] == "ease":
        model: Any = EASEModel(regularization=settings["regularization"], recommend_n_threads=1)
    else:
        model = SASRecModel(
            n_factors=settings["width"], n_blocks=2, n_heads=2, session_max_len=settings["session_max_len"],
            epochs=settings["epochs"], loss="gBCE", n_negatives=128, gbce_t=0.75, lr=settings["learning_rate"],
            batch_size=128, dropout_rate=0.2, deterministic=True, recommend_torch_device="cpu",
        )  # fmt: skip
    model.fit(dataset)
    return model, dataset


def _score(fitted: tuple[Any, Dataset], settings: dict[str, Any]) -> np.ndarray:
    """Rank the whole catalogue for each request, seen items kept, and look the wanted pairs up."""
    model, dataset = fitted
    histories = _interactions(pq.read_table(settings["histories"]))
    histories = histories[histories[Columns.Item].isin(dataset.item_id_map.external_ids)]
    users = IdMap.from_values(np.unique(histories[Columns.User]))
    # Requests stand for users: what is known of each is its history up to its own request time.
    asked = Dataset(users, dataset.item_id_map, Interactions.from_raw(histories, users, dataset.item_id_map))
    pairs = pq.read_table(settings["pairs"])
    request, item = (pairs[name].to_numpy() for name in ("request_id", "item_id"))
    values = np.full(len(request), np.nan)
    place = pd.Index(dataset.item_id_map.external_ids).get_indexer(item)
    order = np.argsort(request, kind="stable")
    for block in np.array_split(users.external_ids, -(-len(users.external_ids) // _BLOCK_USERS)):
        ranked = model.recommend(
            users=block, dataset=asked, k=len(dataset.item_id_map.external_ids), filter_viewed=False, add_rank_col=False
        )
        of_block = np.full((len(block), len(dataset.item_id_map.external_ids)), np.nan)
        row = pd.Index(block).get_indexer(ranked[Columns.User])
        of_block[row, pd.Index(dataset.item_id_map.external_ids).get_indexer(ranked[Columns.Item])] = ranked[
            Columns.Score
        ]
        first, last = np.searchsorted(request[order], [block[0], block[-1] + 1])
        chosen = order[first:last]
        chosen_row = pd.Index(block).get_indexer(request[chosen])
        known = (chosen_row >= 0) & (place[chosen] >= 0)
        values[chosen[known]] = of_block[chosen_row[known], place[chosen[known]]]
    return values


def _interactions(table: pa.Table) -> pd.DataFrame:
    return pd.DataFrame(
        {
            Columns.User: table["user_id"].to_numpy(),
            Columns.Item: table["item_id"].to_numpy(),
            # float32 from the start: EASE's dense inverse would take twice the memory in float64.
            Columns.Weight: np.ones(table.num_rows, dtype=np.float32),
            Columns.Datetime: pd.to_datetime(table["event_us"].to_numpy(), unit="us"),
        }
    )


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(json.loads(Path(sys.argv[1]).read_text())["seed"])
    main(sys.argv[1])
