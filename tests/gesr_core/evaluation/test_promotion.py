"""When a challenger is promoted, and when a ds may not decide. No JVM."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from gesr_core.config import load_config
from gesr_core.errors import ConfigurationError, InputError
from gesr_core.evaluation import promotion
from gesr_core.evaluation.promotion import (
    Trained,
    decide,
    find_trained,
    name_champion,
    require_decidable,
    require_out_of_sample,
)
from gesr_core.metrics.ranking import Metric
from tests.toy import toy_config, write_toy_checkpoint

SETTINGS = load_config("local").evaluation
TRAINED = Trained("gesr/abc", "abc", ("2024-01-01", "2024-01-08"), "2024-01-15", "2024-01-22")
TRAINING_SET = {
    "ds": "2024-01-22",
    "train_dates": ["2024-01-01", "2024-01-08"],
    "validation_date": "2024-01-15",
}
LABELS = {"configuration": {"labels": {"window_days": 7}}}


def difference(low: float | None, high: float | None, *, k: int = 10, segment: str = "all") -> Metric:
    value = 0.0 if low is None or high is None else (low + high) / 2
    return Metric("against:run-1", "ndcg_difference", k, segment, value, low, high, 1_000)


@pytest.mark.parametrize(
    ("low", "high", "promote", "said"),
    [
        (0.001, 0.004, True, "above 0"),
        (0.0, 0.004, False, "not outside 0"),
        (-0.001, 0.004, False, "not outside 0"),
        (-0.004, -0.001, False, "below 0"),
        (None, None, False, "too few for an interval"),
    ],
)
def test_only_an_interval_above_0_promotes(low: float | None, high: float | None, promote: bool, said: str) -> None:
    others = [difference(0.5, 0.6, k=50), difference(0.5, 0.6, segment="source:own")]
    decision = decide([*others, difference(low, high)], settings=SETTINGS)
    assert decision.promote is promote
    assert said in decision.reason
    assert "ndcg@10 of all" in decision.reason


def test_the_segment_that_decides_is_configured() -> None:
    settings = load_config("local", overrides=["evaluation.promote_segment=source:own"]).evaluation
    assert decide([difference(-1, 1), difference(0.1, 0.2, segment="source:own")], settings=settings).promote
    with pytest.raises(InputError, match=r"not compared in segment 'source:own' \(it was in all\)"):
        decide([difference(-1, 1)], settings=settings)
    with pytest.raises(InputError, match="are fewer than 10 published"):
        decide([], settings=settings)


def test_a_metric_that_is_not_measured_cannot_decide() -> None:
    with pytest.raises(ConfigurationError, match=r"promote_by is 'ndcg@7', but evaluation.ks are \[10, 50, 100\]"):
        require_decidable(load_config("local", overrides=["evaluation.promote_by=ndcg@7"]).evaluation)
    for wrong in ("auc@10", "ndcg", "ndcg@0", "gauc@10"):
        with pytest.raises(ConfigurationError, match=r"expected METRIC@K with a metric of ndcg, recall"):
            load_config("local", overrides=[f"evaluation.promote_by={wrong}"])


@pytest.mark.parametrize(
    ("ds", "in_sample"), [("2024-01-15", True), ("2024-01-21", True), ("2024-01-22", False), ("2024-02-01", False)]
)
def test_a_ds_before_the_end_of_the_last_label_window_is_in_sample(ds: str, in_sample: bool) -> None:
    later = Trained("gesr/old", "old", ("2023-12-01",), "2023-12-08", "2023-12-15")
    assert TRAINED.is_in_sample(ds) is in_sample
    assert ("IN-SAMPLE" in TRAINED.describe(ds)) is in_sample
    if not in_sample:
        require_out_of_sample(ds, [TRAINED, later])
        return
    with pytest.raises(
        InputError, match=rf"ds {ds} is in-sample for gesr/abc: .* on a ds from 2024-01-22 on"
    ) as caught:
        require_out_of_sample(ds, [later, TRAINED])
    assert caught.value.exit_code == 3


def test_the_period_is_read_from_the_checkpoints_manifest(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    path = write_toy_checkpoint(config, inputs={"training_set": TRAINING_SET, **LABELS})
    found = find_trained(config.folder("checkpoints"), path.name)
    assert found == Trained(f"gesr/{path.name}", path.name, ("2024-01-01", "2024-01-08"), "2024-01-15", "2024-01-22")
    assert json.loads((path / "manifest.json").read_bytes())["inputs"]["training_set"] == TRAINING_SET
    with pytest.raises(InputError, match=r"checkpoint 0123 is not in .* \(storage.checkpoints\)"):
        find_trained(config.folder("checkpoints"), "0123")
    silent = write_toy_checkpoint(config, seed=2)
    with pytest.raises(InputError, match=r"does not say what .* was trained on \(inputs has no 'training_set'\)"):
        find_trained(config.folder("checkpoints"), silent.name)


def test_the_alias_moves_where_a_model_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    fake = ModuleType("gesr_core.training.registry")
    fake.set_alias = lambda config, *, alias, checkpoint_id: calls.append((alias, checkpoint_id))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gesr_core.training.registry", fake)
    config = load_config("local")
    assert "no alias was moved" in name_champion(config, TRAINED)
    assert "--checkpoint gesr/abc" in name_champion(config, TRAINED)
    assert calls == []
    monkeypatch.setattr(promotion, "registered_model", lambda config: "ranking")
    assert name_champion(config, TRAINED) == "models:/ranking@champion is gesr/abc now"
    assert calls == [("champion", "abc")]
