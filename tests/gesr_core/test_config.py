"""Configuration: every environment loads, every mistake is named, all of them at once, nothing can be injected."""

from __future__ import annotations

from pathlib import Path

import pytest

from gesr_core.config import PROJECT_ROOT, FeaturesConfig, load_config
from gesr_core.errors import ConfigurationError
from gesr_core.names import Role


@pytest.mark.parametrize("env", ["local", "movielens", "prod", "databricks", "databricks,databricks_dev"])
def test_every_environment_is_valid(env: str) -> None:
    config = load_config(env)
    assert [config.table(role).role for role in Role] == [role.value for role in Role]


def test_of_several_environments_the_later_wins() -> None:
    config = load_config("databricks,databricks_dev")
    assert config.table(Role.EVENTS).location == "main.shop.events"
    assert config.table(Role.SCORES).location == "dev.ranking.scores"
    with pytest.raises(ConfigurationError, match=r"unknown --env 'databrick_dev'; .*did you mean 'databricks_dev'"):
        load_config("databricks,databrick_dev")


def test_a_local_table_is_a_folder_under_the_project() -> None:
    ref = load_config("local").table(Role.SCORES)
    assert ref.location == str(PROJECT_ROOT / "var/local/scores")
    assert ref.sql_name == f"delta.`{ref.location}`"


def test_a_second_target_stands_beside_the_first() -> None:
    assert load_config("prod").table(Role.SCORES, target="scores_challenger").location == "ranking.scores_challenger"
    assert load_config("local").table(Role.SCORES, target="other").location.endswith("var/local/other")


def test_all_mistakes_are_named_at_once_with_the_nearest_key() -> None:
    overrides = [
        "scoring.topk=3",
        "modls.gesr.width=8",
        "models.gesr.widht=3",
        "features.item=[{name: a, kindd: numeric}]",
    ]
    with pytest.raises(ConfigurationError, match="5 configuration errors") as caught:
        load_config("local", overrides=overrides)
    message = str(caught.value)
    for line in (
        "unknown key 'scoring.topk'; did you mean 'top_k'?",
        "unknown key 'modls'; did you mean 'models'?",
        "unknown key 'models.gesr.widht'; did you mean 'width'?",
        "missing key 'features.item.0.kind'",
        "unknown key 'features.item.0.kindd'; did you mean 'kind'?",
    ):
        assert line in message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.model=gsr", "did you mean 'gesr'"),
        ("tables.events.location=x; DROP TABLE y", "neither a table name"),
        ("tables.events.location=/data/../../etc", "neither a table name"),
        ("tables.events.location=/data/`x`", "neither a table name"),
        ("tables.events.columns={'user id; --': x}", "columns"),
        ("scoring.top_k=0", "greater than 0"),
        ("scoring.top_k=many", "valid integer"),
        ("models.gesr.attention_heads=3", "width 64 is not a multiple of attention_heads 3"),
        ("features.hard_match=[{history: creator, candidate: item_id}]", "hard_match names 'creator'"),
        ("features.hard_match=[{history: mean_spend, candidate: item_id}]", "hard_match names 'mean_spend'"),
        (
            "features.hard_match=[{history: item_id, candidate: item_id, actions: [b, a]}, "
            "{history: item_id, candidate: item_id, actions: [a, b]}]",
            r"declared twice: hard_match item_id with item_id actions \['a', 'b'\]",
        ),
        ("features.event_signals=[{name: a, kind: below_share, share: 0.3}]", "needs share and of"),
        ("features.event_signals=[{name: a, kind: repeat, share: 0.3}]", "takes neither share nor of"),
        (
            "features.event_signals=[{name: a, kind: below_share, share: 0.3, of: mean_spent}]",
            "event_signals names 'mean_spent'.*did you mean 'mean_spend'",
        ),
        ("features.event_signals=[{name: a, kind: repeat}, {name: a, kind: repeat}]", "declared twice: a"),
        ("features.user=[{name: a, kind: multi, transform: log1p}]", "transform is for kind numeric alone"),
        ("features.user=[{name: a, kind: categorical, max_values: 3}]", "max_values is for kind multi alone"),
        ("features.user=[{name: a, kind: multi, max_values: 1}]", "greater than or equal to 2"),
        ("models.gesr.match_offset=publishd", "'padded' or 'literal'"),
        ("histories.window_days=0", "greater than 0"),
        ("labels.tasks=[{name: a}]", "score_weight 0"),
        ("labels.tasks=[{name: a, score_weight: 1}, {name: a}]", "declared twice: a"),
        ("features.user=[{name: a, kind: numeric}, {name: a, kind: categorical}]", "declared twice: a"),
        ("histories.max_events=65", r"history_buckets end at 64, before histories\.max_events \(65\)"),
        ("scoring.candidate_buckets=[64, 16]", r"\[64, 16\] do not ascend"),
        ("scoring.top_k", "expected section.key=value"),
        ("scoring.top_k=[1", "not valid YAML"),
        ("scoring.device=!!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_a_wrong_value_is_refused_with_its_reason(override: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load_config("local", overrides=[override])


def test_an_unknown_environment_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match=r"unknown --env .locl.*did you mean .local"):
        load_config("locl")


def test_spark_keys_keep_their_dots() -> None:
    assert (
        load_config("local", overrides=["spark.spark.sql.shuffle.partitions=3"]).spark["spark.sql.shuffle.partitions"]
        == 3
    )


def test_yaml_files_cannot_run_code(tmp_path: Path) -> None:
    for folder in ("base", "evil"):
        (tmp_path / folder).mkdir()
    (tmp_path / "evil" / "scoring.yaml").write_text("top_k: !!python/object/apply:os.getpid []\n")
    with pytest.raises(ConfigurationError, match=r"scoring\.yaml is not valid YAML"):
        load_config("evil", conf_dir=tmp_path)


@pytest.mark.parametrize(("word", "compile_"), [("on", "on"), ("off", "off"), ("auto", "auto"), ("graphs", "graphs")])
def test_on_and_off_are_words_whatever_yaml_makes_of_them(word: str, compile_: str) -> None:
    assert load_config("local", overrides=[f"scoring.compile={word}"]).scoring.compile == compile_


def test_a_pair_may_be_declared_several_times_with_different_windows() -> None:
    pairs = "[{history: item_id, candidate: item_id}, {history: item_id, candidate: item_id, window_days: 7}]"
    declared = load_config("local", overrides=[f"features.hard_match={pairs}"]).features.hard_match
    assert [pair.window_days for pair in declared] == [None, 7]


def test_declared_features_come_back_from_what_a_checkpoint_says_of_them() -> None:
    features = load_config("local", overrides=["features.user=[{name: a, kind: multi}]"]).features
    assert FeaturesConfig.model_validate(features.model_dump(mode="json")) == features


@pytest.mark.parametrize(
    ("override", "changes"),
    [
        ("scoring.top_k=7", True),
        ("features.item_id_min_events=9", True),
        ("histories.window_days=30", True),
        ("scoring.shards_per_wave=3", False),
        ("scoring.transport=pandas_udf", False),
        ("tables.root=/elsewhere/x", False),
        ("training.epochs=9", False),
    ],
)
def test_the_scoring_hash_covers_what_can_change_a_published_row(override: str, changes: bool) -> None:
    before, after = load_config("local"), load_config("local", overrides=[override])
    assert (before.scoring_hash() != after.scoring_hash()) is changes


def test_score_weights_follow_the_order_of_the_checkpoint() -> None:
    labels = load_config("local").labels
    assert labels.score_weights(("bought_high_spend", "bought")) == (0.0, 1.0)
    with pytest.raises(ConfigurationError, match="train again"):
        labels.score_weights(("bought",))
