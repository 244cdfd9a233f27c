"""What a pair costs with EASE or SASRec of RecTools. Runs in their own environment (requirements-rectools.txt).

    rectools_cost.py FOLDER_OF_RECTOOLS_SCORES SETTINGS.json

fits as rectools_scores.py does, then values the wanted pairs again and again and writes the seconds of each pass. What
is known of the requests is ready before, as matrices and places; what comes out must be what rectools_scores.py says.
"""

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch
from rectools.dataset import Dataset

_BLOCK_USERS = 256


def main(folder: str, path: str) -> None:
    """Fit once, time the passes, write their seconds."""
    sys.path.insert(0, folder)
    scores = importlib.import_module("rectools_scores")
    settings = json.loads(Path(path).read_text())
    torch.set_num_threads(1)
    torch.manual_seed(settings["seed"])
    model, dataset = fitted = scores._fit(settings)
    expected = scores._score(fitted, settings)
    pairs = pq.read_table(settings["pairs"])
    request, item = (pairs[name].to_numpy() for name in ("request_id", "item_id"))
    known = np.flatnonzero(~np.isnan(expected))
    known = known[np.argsort(request[known], kind="stable")]
    request, item = request[known], item[known]
    values_of = _ease if settings["model"] == "ease" else _sasrec
    seconds = []
    asked = scores.asked_of(dataset, settings["asked"])
    for _ in range(settings["repeats"]):
        found, elapsed_s = values_of(scores, model, asked, request, item)
        np.testing.assert_allclose(found, expected[known], rtol=1e-3, atol=1e-4)
        seconds.append(elapsed_s)
    Path(settings["seconds"]).write_text(json.dumps(seconds))


def _ease(_: Any, model: Any, asked: Dataset, request: np.ndarray, item: np.ndarray) -> tuple[np.ndarray, float]:
    """Value pairs by the weights between what was bought and the candidates; `recommend` takes the catalogue's."""
    bought = asked.get_user_item_matrix(include_weights=True).tocsr()
    rows = pd.Index(asked.user_id_map.external_ids).get_indexer(request)
    columns = pd.Index(asked.item_id_map.external_ids).get_indexer(item)
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    ends = np.append(starts[1:], len(rows))
    values = np.empty(len(rows))
    started_s = time.perf_counter()
    for start, end in zip(starts, ends, strict=True):
        row = rows[start]
        of_row = slice(bought.indptr[row], bought.indptr[row + 1])
        # As rectools_scores.py turned them, an item's weights lie in its row.
        weights = model.weight[columns[start:end, None], bought.indices[of_row]]
        values[start:end] = weights @ bought.data[of_row]
    return values, time.perf_counter() - started_s


def _sasrec(scores: Any, model: Any, asked: Dataset, request: np.ndarray, item: np.ndarray) -> tuple[np.ndarray, float]:
    """Encode every session, then multiply blocks of them with the catalogue."""
    started_s = time.perf_counter()
    rows, columns, block_values = scores._sasrec_values(model, asked)
    encoded_s = time.perf_counter() - started_s
    row, column = rows.get_indexer(request), columns.get_indexer(item)
    order = np.argsort(row, kind="stable")
    row, column = row[order], column[order]
    found = np.empty(len(row))
    started_s = time.perf_counter()
    for first in range(0, len(rows), _BLOCK_USERS):
        chosen = slice(*np.searchsorted(row, [first, first + _BLOCK_USERS]))
        found[chosen] = block_values(first, first + _BLOCK_USERS)[row[chosen] - first, column[chosen]]
    elapsed_s = encoded_s + time.perf_counter() - started_s
    values = np.empty(len(found))
    values[order] = found
    return values, elapsed_s


if __name__ == "__main__":
    main(*sys.argv[1:])
