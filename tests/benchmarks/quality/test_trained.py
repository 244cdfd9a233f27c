"""A small prepared data set, learned and scored as the benchmark does; no JVM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from benchmarks.quality import trained
from benchmarks.quality.external import histories
from benchmarks.quality.folders import write_manifest
from benchmarks.quality.measures import ALL, measure
from benchmarks.quality.prepared import Prepared, Regime, Step, open_prepared
from benchmarks.quality.rivals import own_counts, personal_frequency, popularity, retrieval_order
from benchmarks.quality.trained import codebook_use, learn_and_score
from gesr_core.config import Config
from gesr_core.dates import request_time_us
from gesr_core.errors import ConfigurationError
from gesr_core.model.build import build_model
from gesr_core.training.data import decode_window, encode_training_items, make_batch
from gesr_core.training.loop import logits_of
from gesr_core.training.trainer import fit_features
from tests.training_sets import ITEMS, toy_config, toy_items, toy_requests

DAYS = ("2001-01-03", "2001-01-10", "2001-01-17", "2001-01-24", "2001-01-31")
REGIME = Regime(DAYS[:2], DAYS[2], (Step(DAYS[2], DAYS[3]), Step(DAYS[3], DAYS[4])))
TASKS = ("bought", "bought_high_spend")


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    """A prepared data set of toy requests; what is bought is told by the candidates' labels."""
    rows = {ds: toy_requests(ds, seed=n) for n, ds in enumerate(DAYS)}
    for ds in DAYS:
        write(rows[ds], tmp_path / "learn" / ds / "part-0.parquet")
        write(toy_items(seed=DAYS.index(ds)), tmp_path / "items" / f"{ds}.parquet")
    write(pa.concat_tables([rows[ds] for ds in REGIME.train]), tmp_path / "train/part-0.parquet")
    for ds in (REGIME.validation, *REGIME.tests):
        write(rows[ds].append_column("request_id", rows[ds]["user_id"]), tmp_path / "test" / ds / "part-0.parquet")
        write(truth_of(rows[ds]), tmp_path / "truth" / f"{ds}.parquet")
        # Retrieval order: the candidates from the last to the first.
        order = [list(reversed(ids)) for ids in rows[ds]["candidate_item_id"].to_pylist()]
        write(pa.table({"request_id": rows[ds]["user_id"], "items": order}), tmp_path / "order" / f"{ds}.parquet")
    ids = np.arange(ITEMS) * 10 + 3
    write(pa.table({"item_id": ids, "events": np.arange(ITEMS)}), tmp_path / "item_events.parquet")
    write(events(), tmp_path / "events.parquet")
    write_manifest(tmp_path, name="toy", key="toy", regime=REGIME, tasks=TASKS, facts={})
    return open_prepared(tmp_path)


def write(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def truth_of(rows: pa.Table) -> pa.Table:
    """The labelled candidates, and one item per request that was not retrieved."""
    found = [
        (user, item)
        for user, ids, labels in zip(
            *(rows[name].to_pylist() for name in ("user_id", "candidate_item_id", "label_bought")), strict=True
        )
        for item in [*(i for i, label in zip(ids, labels, strict=True) if label), 9_999]
    ]
    users, items = (np.array(column) for column in zip(*found, strict=True))
    ones = np.ones(len(users), dtype=np.int32)
    return pa.table(
        {"request_id": users, "user_id": users, "item_id": items, "label_bought": ones, "label_bought_high_spend": ones}
    )


def events() -> pa.Table:
    """Users 0 and 1 and what they bought, by days before and after the first test ds."""
    at = request_time_us(DAYS[3])
    rows = [(0, 13, -1), (0, 13, -2), (0, 23, -20), (1, 23, -3), (1, 13, -3), (1, 33, 1)]
    users, items, days = (np.array(column) for column in zip(*rows, strict=True))
    table = pa.table(
        {"user_id": users, "item_id": items, "event_us": at + days * 86_400_000_000, "value": np.ones(len(rows))}
    )
    return table.sort_by("event_us")


def by_pair(prepared: Prepared, values: np.ndarray) -> Mapping[tuple[int, int], float]:
    test = prepared.test(DAYS[3])
    return dict(zip(zip(test.user_P.tolist(), test.item_P.tolist(), strict=True), values.tolist(), strict=True))


def learned(
    prepared: Prepared,
    config: Config,
    kept: Path,
    *,
    model_name: str = "two_tower",
    served: Config | None = None,
    on_validation: bool = False,
) -> list[trained.Scored]:
    """Learn, unless the weights are kept already, and score every test ds."""
    found = learn_and_score(
        prepared, config, served=served or config, model_name=model_name, kept=kept, on_validation=on_validation
    )
    return list(found)


@pytest.mark.parametrize("model_name", ["two_tower", "gesr"])
def test_a_test_ds_is_scored_as_training_scores_it(prepared: Prepared, tmp_path: Path, model_name: str) -> None:
    # Whole toy histories: in real data none is longer than this.
    config = toy_config(tmp_path, "histories.max_events=8")
    test, data = prepared.test(DAYS[3]), prepared.training_set()
    features = fit_features(data, config)
    torch.manual_seed(3)
    model = build_model(config.models[model_name], features.sizes).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    items = prepared.items([DAYS[3]])
    logit_PS, used = trained.score_pairs(model, test, items[DAYS[3]], features, config=config)
    training_items = encode_training_items(items, features)
    jagged = decode_window(test.rows, items=training_items, features=features)
    batch = make_batch(jagged, torch.arange(test.rows.num_rows), features=features)
    with torch.inference_mode():
        expected = logits_of(model, batch, training_items)
    assert logit_PS == pytest.approx(expected.flatten(0, 1).numpy(), abs=5e-5)
    assert used == []


def test_dates_are_learned_one_after_the_other_and_no_later_one_before_its_test(
    prepared: Prepared, tmp_path: Path
) -> None:
    config = toy_config(tmp_path)
    first, second = learned(prepared, config, tmp_path / "first")
    assert (first.test.ds, second.test.ds) == (DAYS[3], DAYS[4])
    assert second.facts["pairs_learned"] == first.facts["pairs_learned"] + 30 * 6
    # What a later ds holds has no influence on an earlier test.
    write(toy_requests(DAYS[3], seed=99), prepared.folder / "learn" / DAYS[3] / "part-0.parquet")
    again, other = learned(prepared, config, tmp_path / "again")
    assert again.logit_PS.tolist() == first.logit_PS.tolist()
    assert other.logit_PS.tolist() != second.logit_PS.tolist()


def test_the_validation_ds_is_learned_before_the_first_test(prepared: Prepared, tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    before, _ = learned(prepared, config, tmp_path / "before")
    write(toy_requests(DAYS[2], seed=99), prepared.folder / "learn" / DAYS[2] / "part-0.parquet")
    after, _ = learned(prepared, config, tmp_path / "after")
    assert before.logit_PS.tolist() != after.logit_PS.tolist()


def test_a_trial_is_measured_on_the_validation_ds_and_does_not_learn_it(prepared: Prepared, tmp_path: Path) -> None:
    def trial(name: str, *overrides: str) -> list[trained.Scored]:
        return learned(prepared, toy_config(tmp_path, *overrides), tmp_path / name, on_validation=True)

    (found,) = trial("found", "training.epochs=1", "training.catch_up_rate=0")
    assert found.test.ds == DAYS[2]
    assert found.facts["pairs_learned"] == 60 * 6
    # Other labels to stop by, and with one epoch there is nothing to stop: had it learned them, it would differ.
    write(toy_requests(DAYS[2], seed=99), prepared.folder / "learn" / DAYS[2] / "part-0.parquet")
    (again,) = trial("again", "training.epochs=1", "training.catch_up_rate=0")
    assert again.logit_PS.tolist() == found.logit_PS.tolist()
    with pytest.raises(ConfigurationError, match="catch up"):
        trial("refused", "training.catch_up_rate=0.5")


def test_cells_that_serve_another_logit_take_the_weights_that_are_there(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy_config(tmp_path)
    teachers = toy_config(tmp_path, "models.tarq.serves=teacher")
    served = learned(prepared, config, tmp_path / "kept", model_name="tarq")
    # Nothing is trained any more.
    monkeypatch.delattr(trained, "train")
    again = learned(prepared, config, tmp_path / "kept", model_name="tarq")
    taught = learned(prepared, config, tmp_path / "kept", model_name="tarq", served=teachers)
    assert [s.logit_PS.tolist() for s in again] == [s.logit_PS.tolist() for s in served]
    assert [s.facts["pairs_learned"] for s in taught] == [s.facts["pairs_learned"] for s in served]
    assert taught[1].logit_PS.tolist() != served[1].logit_PS.tolist()


def test_a_positive_that_was_not_retrieved_counts_against_every_ordering(prepared: Prepared) -> None:
    test = prepared.test(DAYS[3])
    best = measure(test, test.label_PS[:, 0].astype(np.float64)).values()[ALL]
    assert 0 < best["recall"] < 1
    assert best["gauc"] == 1


def test_retrieval_order_is_that_of_the_lists(prepared: Prepared) -> None:
    test = prepared.test(DAYS[3])
    first = by_pair(prepared, retrieval_order(prepared, test))
    user_items = sorted(item for user, item in first if user == 4)
    assert [first[4, item] for item in user_items] == [-5, -4, -3, -2, -1, 0]


def test_own_counts_and_popularity_stop_at_the_request_time(prepared: Prepared) -> None:
    test = replace(
        prepared.test(DAYS[3]),
        unit_P=np.array([0, 0, 0, 1, 1, 1]), item_P=np.array([13, 23, 33, 13, 23, 33]),
    )  # fmt: skip
    assert own_counts(prepared, test).tolist() == [2, 1, 0, 1, 1, 0]
    assert popularity(7)(prepared, test).tolist() == [2, 1, 0, 2, 1, 0]
    assert popularity(28)(prepared, test).tolist() == [2, 2, 0, 2, 2, 0]
    order = personal_frequency(prepared, test)
    assert order[3] > order[4]
    assert order[1] > order[2]


def test_another_package_sees_of_each_request_what_lay_before_it(prepared: Prepared) -> None:
    at = request_time_us(DAYS[3])
    table = histories(
        prepared.events_before(at + 10**12),
        request_U=np.array([70, 71, 72]),
        user_U=np.array([0, 1, 1]),
        time_us_U=np.array([at, at, at + 2 * 86_400_000_000]),
    )
    seen = sorted(zip(table["user_id"].to_pylist(), table["item_id"].to_pylist(), strict=True))
    assert seen == [(70, 13), (70, 13), (70, 23), (71, 13), (71, 23), (72, 13), (72, 23), (72, 33)]


def test_codes_in_use_are_counted_per_level() -> None:
    codes_RQ = torch.tensor([[0, 1], [0, 2], [3, 2]])
    assert codebook_use({"codes_RQ": codes_RQ}) == [2, 2]
    assert codebook_use({}) == []
