"""Fit EASE or SASRec of RecTools and score given pairs. Runs in an environment of its own (requirements-rectools.txt).

    rectools_scores.py SETTINGS.json

reads what the settings name and writes one value per pair, in the order of the pairs; it knows nothing of the project.
Items with too few events in the training part have no value: the pair gets null.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rectools import Columns
from rectools.dataset import Dataset, IdMap, Interactions
from rectools.models import EASEModel, SASRecModel
from scipy.linalg import lapack

_BLOCK_USERS = 256
_BLOCK_ITEMS = 512
_CHECKED_USERS = 20


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
        with mock.patch.object(np.linalg, "inv", _inverse):
            model.fit(dataset)
        # EASE's values are X B (Steck 2019, with B_ij = -P_ij / P_jj); RecTools 0.19 ranks by X B^T, which values an
        # item by what it says of others.
        model.weight = np.ascontiguousarray(model.weight.T)
        return model, dataset
    model = SASRecModel(
        n_factors=settings["width"], n_blocks=2, n_heads=2, session_max_len=settings["session_max_len"],
        epochs=settings["epochs"], loss="gBCE", n_negatives=settings["negatives"], gbce_t=0.75,
        lr=settings["learning_rate"], batch_size=128, dropout_rate=0.2, deterministic=True,
        recommend_torch_device="cpu",
    )  # fmt: skip
    model.fit(dataset)
    return model, dataset


def _inverse(gram: np.ndarray) -> np.ndarray:
    """Return the inverse of a positive definite matrix, by Cholesky: n^3 multiplications, where numpy's takes 8/3 n^3.

    It takes the place of numpy's while RecTools fits, which calls that by name.
    """
    factor, failed = lapack.spotrf(gram, lower=True)
    inverse, failed_too = lapack.spotri(factor, lower=True, overwrite_c=True)
    if failed or failed_too:
        raise np.linalg.LinAlgError("the Gram matrix is not positive definite")
    for first in range(0, len(inverse), _BLOCK_ITEMS):
        last = first + _BLOCK_ITEMS
        block = inverse[first:last, first:last]
        block[:] = np.tril(block) + np.tril(block, -1).T
        inverse[first:last, last:] = inverse[last:, first:last].T
    # LAPACK's columns, which are the rows of the same symmetric matrix: numpy goes through rows many times as fast.
    return inverse.T


def _score(fitted: tuple[Any, Dataset], settings: dict[str, Any]) -> np.ndarray:
    """Value the wanted pairs, seen items kept.

    By what `recommend` multiplies: it would rank the whole catalogue for every request, of which a few hundred items
    are wanted. Some requests are ranked by `recommend` too, and must agree.
    """
    model, dataset = fitted
    asked = asked_of(dataset, settings["histories"])
    rows, columns, block_values = (_ease_values if settings["model"] == "ease" else _sasrec_values)(model, asked)
    pairs = pq.read_table(settings["pairs"])
    request, item = (pairs[name].to_numpy() for name in ("request_id", "item_id"))
    row, column = rows.get_indexer(request), columns.get_indexer(item)
    values = np.full(len(request), np.nan)
    known = np.flatnonzero((row >= 0) & (column >= 0))
    known = known[np.argsort(row[known], kind="stable")]
    for first in range(0, len(rows), _BLOCK_USERS):
        begin, end = np.searchsorted(row[known], [first, first + _BLOCK_USERS])
        chosen = known[begin:end]
        values[chosen] = block_values(first, first + _BLOCK_USERS)[row[chosen] - first, column[chosen]]
    _check(model, asked, request[known], item[known], values[known])
    return values


def asked_of(dataset: Dataset, histories_path: str) -> Dataset:
    """Return what is known of requests, which stand for users: the history of each up to its own request time."""
    histories = _interactions(pq.read_table(histories_path))
    histories = histories[histories[Columns.Item].isin(dataset.item_id_map.external_ids)]
    users = IdMap.from_values(np.unique(histories[Columns.User]))
    return Dataset(users, dataset.item_id_map, Interactions.from_raw(histories, users, dataset.item_id_map))


def _ease_values(model: EASEModel, asked: Dataset) -> tuple[pd.Index, pd.Index, Callable[[int, int], np.ndarray]]:
    """Return requests, items, and the values of some requests for every item: what was bought, times the weights.

    As `recommend` multiplies; `_fit` turned the weights so that this is EASE's product.
    """
    bought = asked.get_user_item_matrix(include_weights=True)
    ids = pd.Index(asked.user_id_map.external_ids), pd.Index(asked.item_id_map.external_ids)
    # Row by row in memory: the product would copy it for every block.
    weights = np.ascontiguousarray(model.weight.T)
    return *ids, lambda first, last: bought[first:last] @ weights


def _sasrec_values(model: SASRecModel, asked: Dataset) -> tuple[pd.Index, pd.Index, Callable[[int, int], np.ndarray]]:
    """Return requests, items, and the values of some requests for every item: what the sessions and items become."""
    sessions = model.data_preparator.transform_dataset_u2i(asked, asked.user_id_map.external_ids)
    network = model.torch_model.eval()
    with torch.inference_mode():
        item_RD = network.item_model.get_all_embeddings()
        user_BD = torch.cat(
            [
                network.similarity_module.session_tower_forward(network.encode_sessions(batch, item_RD)[:, -1])
                for batch in model.data_preparator.get_dataloader_recommend(sessions, _BLOCK_USERS)
            ]
        )
        item_DR = network.similarity_module.item_tower_forward(item_RD).T
    # The catalogue begins with tokens that stand for no item, and whose names are no numbers.
    tokens = len(item_RD) - len(model.data_preparator.get_known_item_ids())
    names = [-1 - place for place in range(tokens)] + list(model.data_preparator.get_known_item_ids())
    ids = pd.Index(sessions.user_id_map.external_ids), pd.Index(np.array(names, dtype=np.int64))
    return *ids, lambda first, last: (user_BD[first:last] @ item_DR).numpy()


def _check(model: Any, asked: Dataset, request: np.ndarray, item: np.ndarray, values: np.ndarray) -> None:
    """Hold the values of some requests against what RecTools itself recommends."""
    some = np.unique(request)[:_CHECKED_USERS]
    ranked = model.recommend(
        users=some, dataset=asked, k=len(asked.item_id_map.external_ids), filter_viewed=False, add_rank_col=False
    )
    theirs = ranked.set_index([Columns.User, Columns.Item])[Columns.Score]
    wanted = np.isin(request, some)
    found = theirs.reindex(pd.MultiIndex.from_arrays([request[wanted], item[wanted]])).to_numpy()
    np.testing.assert_allclose(values[wanted], found, rtol=1e-3, atol=1e-4)


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
    torch.set_num_threads(1)
    torch.manual_seed(json.loads(Path(sys.argv[1]).read_text())["seed"])
    main(sys.argv[1])
