"""What is run, what is found done, and what is said of the rest."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.quality import ml_100k, run, ta_feng
from benchmarks.quality.measures import ALL, measure
from benchmarks.quality.plan import CELLS, CHOSEN, MODELS, SEARCH, TRIALS, Cell, NotBuilt, cell_config
from benchmarks.quality.prepared import Prepared, Regime, Step
from benchmarks.quality.search import best_first, trial_row
from benchmarks.quality.store import Place
from tests.benchmarks.quality.sets import a_test_set

REGIME = Regime(("2001-01-01",), "2001-01-08", (Step("2001-01-08", "2001-01-15"),))
MANIFEST = {"name": ta_feng.NAME, "key": "data", "regime": REGIME.to_json(), "tasks": ["bought"]}
TWO_TOWER = Cell("two_tower", "trained", 2, "two_tower", data=(ta_feng.NAME,))
NOWHERE = Cell("nowhere", "trained", 1, "nowhere", data=(ta_feng.NAME,))


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Prepared]:
    """A prepared folder that holds nothing: no cell can be computed from it."""
    monkeypatch.setattr(run, "ROOT", tmp_path)
    return {ta_feng.NAME: Prepared(tmp_path / "prepared", MANIFEST)}


def test_a_section_that_the_configuration_lacks_is_not_built() -> None:
    with pytest.raises(NotBuilt, match="'nowhere', which is none of"):
        cell_config(NOWHERE, ta_feng.NAME, seed=1)
    switch = replace(TWO_TOWER, overrides=("models.two_tower.no_such_switch=1",))
    with pytest.raises(NotBuilt, match="no_such_switch"):
        cell_config(switch, ta_feng.NAME, seed=1)


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_a_quick_cell_is_one_seed_of_one_epoch_and_not_mistaken_for_a_whole_one(
    cell: Cell, prepared: dict[str, Prepared]
) -> None:
    cell = replace(cell, data=(ta_feng.NAME,))
    quick, *others = run.jobs_of([cell.quickly()], prepared)
    whole = run.jobs_of([cell], prepared)
    assert not others
    assert len(whole) == cell.seeds
    assert quick.place != whole[0].place
    if cell.kind == "trained":
        assert cell_config(quick.cell, ta_feng.NAME, seed=1).training.epochs == 1


@pytest.mark.parametrize("data", [ta_feng.NAME, ml_100k.NAME])
def test_parts_of_gesr_are_switched_off_as_their_cells_say(data: str) -> None:
    def parts(name: str) -> tuple[bool, bool, bool]:
        cell = next(cell for cell in CELLS if cell.name == name)
        config = cell_config(cell, data, seed=1)
        section = config.models["gesr"].model_dump()
        return bool(config.features.hard_match), bool(section["attention_layers"]), bool(section["cross_width"])

    assert parts("gesr") == (True, True, True)
    assert parts("gesr_hard_matching_alone") == (True, False, False)
    assert parts("gesr_target_attention_alone") == (False, True, False)
    assert parts("gesr_cross_attention_alone") == (False, False, True)
    assert parts("gesr_gating_alone") == (False, False, False)
    assert parts("gesr_without_hard_matching") == (False, True, True)
    assert parts("gesr_without_target_attention") == (True, False, True)
    assert parts("gesr_without_cross_attention") == (True, True, False)


def test_a_task_alone_is_all_that_is_learned_and_ranked_by() -> None:
    cell = next(cell for cell in CELLS if cell.name == "gesr_bought_high_spend_alone")
    tasks = cell_config(cell, ta_feng.NAME, seed=1).labels.tasks
    assert [(task.loss_weight, task.score_weight) for task in tasks] == [(0.0, 0.0), (1.0, 1.0)]
    assert [task.value_above for task in tasks] == [None, "user_median"]


@pytest.mark.parametrize("data", [ta_feng.NAME, ml_100k.NAME])
def test_every_model_is_searched_alike_and_trained_as_its_best_trial(data: str) -> None:
    def settings(cell: Cell) -> dict[str, object]:
        config = cell_config(cell, data, seed=1)
        return {"batch": config.training.batch_requests, "ids": config.models[cell.model].id_width,
                "epochs": config.training.epochs, "patience": config.training.patience}  # fmt: skip

    trials = [cell for cell in SEARCH if data in cell.data]
    assert {cell.model for cell in trials} == set(MODELS) == set(CHOSEN[data])
    for model in MODELS:
        of_model = {cell.name: cell for cell in trials if cell.model == model}
        assert list(of_model) == [f"search_{model}_{trial}" for trial in TRIALS[data]]
        assert all(cell_config(cell, data, seed=1).training.catch_up_rate == 0 for cell in of_model.values())
        assert len({str(settings(cell)) for cell in of_model.values()}) == len(of_model)
        best = settings(of_model[f"search_{model}_{CHOSEN[data][model]}"])
        trained = [cell for cell in CELLS if cell.model == model and data in cell.data]
        assert all(settings(cell) == best for cell in trained)


def test_the_best_trial_comes_first(tmp_path: Path) -> None:
    def row(trial: str, values: list[float]) -> dict[str, object]:
        cell = next(cell for cell in SEARCH if cell.name == f"search_gesr_{trial}")
        measured = measure(a_test_set([(1, 2, 1), (1, 3, 0), (2, 3, 1), (2, 4, 0)], [(1, 2), (2, 3)]), np.array(values))
        place = Place.of(tmp_path, data=ta_feng.NAME, cell=cell.name, seed=1, key="k")
        place.write({"2001-02-01": {"bought": measured}}, {"elapsed_s": 1.0})
        return trial_row(cell, ta_feng.NAME, place.read())

    rows = best_first([row("one_epoch", [0.0, 1.0, 0.0, 1.0]), row("two_epochs", [1.0, 0.0, 1.0, 0.0])])
    assert [found["trial"] for found in rows] == ["two_epochs", "one_epoch"]
    assert rows[0]["chosen_by"] > rows[1]["chosen_by"]


def test_seeds_come_in_turn_and_what_is_not_built_says_so(prepared: dict[str, Prepared]) -> None:
    jobs = run.jobs_of([TWO_TOWER, NOWHERE], prepared)
    assert [(job.cell.name, job.seed) for job in jobs] == [("two_tower", 1), ("nowhere", 1), ("two_tower", 2)]
    assert (jobs[1].problem or "").startswith("not built")
    assert len(run.jobs_of([TWO_TOWER.quickly()], prepared)) == 1


def test_another_setting_seed_or_data_is_another_cell(prepared: dict[str, Prepared]) -> None:
    wider = replace(TWO_TOWER, overrides=("models.two_tower.width=64",))
    other = {ta_feng.NAME: Prepared(prepared[ta_feng.NAME].folder, {**MANIFEST, "key": "other data"})}
    places = [
        *(job.place for job in run.jobs_of([TWO_TOWER, wider], prepared)),
        *(job.place for job in run.jobs_of([TWO_TOWER], other)),
    ]
    assert len({place.json for place in places if place}) == 6


def test_what_serves_another_logit_of_a_model_shares_its_weights_and_comes_after_it(
    prepared: dict[str, Prepared],
) -> None:
    cells = {cell.name: cell for cell in CELLS}
    one_seed = [cells[name].quickly() for name in ("tarq_teacher", "tarq", "tarq_backbone")]
    jobs = run.jobs_of(one_seed, prepared)
    assert [job.cell.name for job in jobs] == ["tarq", "tarq_backbone", "tarq_teacher"]
    assert jobs[0].kept == jobs[2].kept != jobs[1].kept
    assert len({job.place for job in jobs}) == 3


def test_a_done_cell_is_found_and_one_that_fails_is_named(prepared: dict[str, Prepared]) -> None:
    done, broken = run.jobs_of([TWO_TOWER], prepared)
    assert done.place is not None
    measured = measure(a_test_set([(1, 2, 1), (1, 3, 0)], [(1, 2)]), np.array([1.0, 0.0]))
    done.place.write({"2001-01-15": {"bought": measured}}, {"elapsed_s": 1.0})
    found = run.run_jobs([done, broken], prepared, workers=2, budget_s=60)
    assert found[0].problem is None
    assert (found[1].problem or "").startswith("failed: FileNotFoundError")


def test_no_cell_begins_after_the_budget(prepared: dict[str, Prepared]) -> None:
    jobs = run.jobs_of([TWO_TOWER], prepared)
    assert run.run_jobs(jobs, prepared, workers=1, budget_s=-1)[0].problem == "not run: the budget was spent"


def test_a_cell_is_read_as_it_was_written(tmp_path: Path) -> None:
    measured = measure(a_test_set([(1, 2, 1), (1, 3, 0)], [(1, 2)]), np.array([1.0, 0.0]))
    place = Place.of(tmp_path, data="d", cell="c", seed=1, key="k")
    assert not place.is_done
    place.write({"2001-01-15": {"bought": measured}}, {"elapsed_s": 2.0})
    read = place.read()
    # As text: with one user the measures without the top item are no numbers, which equal nothing.
    assert json.dumps(read.values["2001-01-15"]["bought"], sort_keys=True) == json.dumps(
        measured.values(), sort_keys=True
    )
    assert read.sums["2001-01-15"][ALL].ndcg_U.tolist() == measured.sums[ALL].ndcg_U.tolist()
    assert read.facts == {"elapsed_s": 2.0}
