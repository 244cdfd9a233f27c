"""Whatever stands in `--set` or in a file of `conf/`: a configuration, or one error that says what is wrong."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings, strategies as st

from gesr_core.config import Config, load_config
from gesr_core.errors import ConfigurationError
from gesr_core.names import Role

SECTIONS = sorted(Config.model_fields)
KEYS = [
    *SECTIONS,
    "tables.root",
    "tables.events.location",
    "tables.scores.columns",
    "tables.users.columns.user_id",
    "models.gesr.width",
    "models.gesr.name",
    "models.mine",
    "features.item",
    "features.hard_match",
    "labels.tasks",
    "scoring.history_buckets",
    "scoring.compile",
    "scoring.top_k",
    "gate.max_abs_score",
    "retention.replay_days",
    "spark.spark.master",
    "nothing.of.this",
]
YAML_LIKE = st.one_of(
    st.sampled_from(
        ["2024-99-99", "[", "{", "!!python/object/apply:os.system [echo]", "*x", "&a [*a]", "\x00", "null", "~", "[[]]",
         "{1: 2}", "{null: {}}", "!!binary x", "1e999", ".nan", "-.inf", "0x_", "1:99:99", "<<: 1", "{a: b, a: c}",
         "s3a://bucket/`; drop table x", "/tmp/../../etc", "a.b.c.d", "db.`t`", "file:///x", "'", '"', "|", "? x"]
    ),
    st.text(max_size=30),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
        max_leaves=6,
    ).map(lambda value: yaml.safe_dump(value, allow_unicode=True)),
)  # fmt: skip
OVERRIDES = st.lists(
    st.tuples(st.sampled_from(KEYS) | st.text(max_size=20), YAML_LIKE).map("=".join) | st.text(max_size=30), max_size=4
)


@settings(max_examples=400)
@given(OVERRIDES)
def test_overrides_give_a_configuration_or_a_configuration_error(overrides: list[str]) -> None:
    try:
        config = load_config("local", overrides=overrides)
    except ConfigurationError:
        return
    for role in Role:
        name = config.table(role).sql_name
        # One quoted name, whatever was put there.
        assert re.fullmatch(r"delta\.`[^`]*`|`[^`.]+`(\.`[^`.]+`){0,2}", name), name
        assert ".." not in name.split("/")


@settings(max_examples=100)
@given(st.binary(max_size=60) | YAML_LIKE.map(str.encode))
def test_a_file_of_any_content_gives_a_configuration_or_a_configuration_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    conf = tmp_path_factory.mktemp("conf")
    shipped = Path(__file__).parents[2] / "conf"
    for folder in ("base", "local"):
        (conf / folder).mkdir()
        for path in (shipped / folder).glob("*.yaml"):
            (conf / folder / path.name).write_bytes(path.read_bytes())
    (conf / "local" / "gate.yaml").write_bytes(content)
    with suppress(ConfigurationError):
        load_config("local", conf_dir=conf)


def test_yaml_runs_no_code(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    with pytest.raises(ConfigurationError, match="not valid YAML"):
        load_config("local", overrides=[f"gate=!!python/object/apply:os.system ['touch {trace}']"])
    assert not trace.exists()


@pytest.mark.parametrize(
    "override",
    [
        "tables.root=/x`; DROP TABLE y",
        "tables.root=/x/../../etc",
        "tables.events.location=db.t; DROP TABLE y",
        "tables.events.location=s3a://b/../../other",
        'tables.events.location="/x/\\ny"',
        "features.item=[{name: 'a` b', kind: numeric}]",
        'labels.tasks=[{name: "x\' OR 1", score_weight: 1}]',
    ],
)
def test_what_could_inject_sql_or_leave_its_folder_is_refused(override: str) -> None:
    key = override.partition("=")[0]
    with pytest.raises(ConfigurationError, match=rf"1 configuration error [\s\S]*{key}"):
        load_config("local", overrides=[override])


def test_yaml_that_holds_itself_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="not valid YAML"):
        load_config("local", overrides=["tables.scores=&a {x: *a}"] * 2)


def test_a_folder_given_as_a_uri_is_a_folder_whose_commits_need_the_lock() -> None:
    for location in ("file:///data/scores", "file:/data/scores"):
        table = load_config("local", overrides=[f"tables.scores.location={location}"]).table(Role.SCORES)
        # The scheme stays: without it Spark looks in its default file system.
        assert (table.location, table.local_folder) == (location, Path("/data/scores"))


def test_a_slash_at_the_end_does_not_put_one_table_into_another() -> None:
    config = load_config("local", overrides=["tables.scores.location=s3a://bucket/scores/"])
    assert config.table(Role.SCORES).location == "s3a://bucket/scores"
    assert config.table(Role.SCORES, target="scores_b").location == "s3a://bucket/scores_b"


@pytest.mark.parametrize("target", ["", "a b", "../scores"])
def test_a_target_is_a_plain_name(target: str) -> None:
    with pytest.raises(ConfigurationError, match="is not a plain name"):
        load_config("local").table(Role.SCORES, target=target)
