"""Checkpoints in the registry of a real MLflow server: what a training leaves there, and scoring by an alias."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gesr_core.config import Config
from gesr_core.content import sha256_of
from gesr_core.errors import ConfigurationError, GesrError, InputError
from gesr_core.names import Role
from gesr_core.training.checkpoint import FEATURES, MANIFEST, WEIGHTS, load_checkpoint
from gesr_core.training.registry import register_checkpoint, resolve_checkpoint, set_alias
from gesr_core.training.tracking import CHECKPOINT_TAG, SHA256_TAG
from gesr_core.training.trainer import open_training_set, train_checkpoint
from tests import training_sets
from tests.mlflow_server import Server, free_port, mlflow_server

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from tests.toy import Toy

pytest.importorskip("mlflow", reason="the petastorm set has no mlflow")

FILES = (FEATURES, MANIFEST, WEIGHTS)
MODEL = "toy.ranking"
CHAMPION = f"models:/{MODEL}@champion"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=server.uri)


def told(uri: str, *, model: str = MODEL) -> list[str]:
    return [
        "training.mlflow_experiment=toy",
        f"training.mlflow_tracking_uri={uri}",
        f"training.mlflow_model={model}",
    ]


def train(folder: Path, *overrides: str) -> Path:
    if not (folder / "set").exists():
        training_sets.write_toy_set(folder / "set")
    data = open_training_set(folder / "set", reader="arrow")
    return train_checkpoint(data, training_sets.toy_config(folder, *overrides), model_name="two_tower")


@pytest.fixture(scope="module")
def trained(server: Server, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Config]:
    """A checkpoint that a training registered, and its configuration."""
    folder = tmp_path_factory.mktemp("trained")
    overrides = told(server.uri, model="trained")
    return train(folder, *overrides), training_sets.toy_config(folder, *overrides)


def elsewhere(config: Config, folder: Path) -> Config:
    """The configuration of a machine that has no checkpoint yet."""
    return config.model_copy(update={"storage": config.storage.model_copy(update={"checkpoints": f"{folder}/fetched"})})


def versions(client: Any, model: str) -> list[Any]:
    return sorted(client.search_model_versions(f"name = '{model}'"), key=lambda version: int(version.version))


@pytest.mark.slow
def test_a_training_leaves_its_run_its_files_and_a_version(
    trained: tuple[Path, Config], client: Any, tmp_path: Path
) -> None:
    path, config = trained
    (run,) = client.search_runs([client.get_experiment_by_name("toy").experiment_id], "params.model_name = 'two_tower'")
    assert run.info.status == "FINISHED"
    assert run.data.params["training.epochs"] == "2"
    assert [point.step for point in client.get_metric_history(run.info.run_id, "ne")] == [1, 2]
    hashes = {CHECKPOINT_TAG: path.name, SHA256_TAG: sha256_of(path / MANIFEST)}
    assert hashes.items() <= run.data.tags.items()
    copy = Path(client.download_artifacts(run.info.run_id, "checkpoint", str(tmp_path)))
    for name in (*FILES, "log.jsonl"):
        assert (copy / name).read_bytes() == (path / name).read_bytes()
    (version,) = versions(client, "trained")
    assert (version.run_id, version.source) == (run.info.run_id, f"{run.info.artifact_uri}/checkpoint")
    assert hashes.items() <= version.tags.items()
    # Told again, it is the same version.
    assert train(path.parents[2], *told(config.training.mlflow_tracking_uri or "", model="trained")) == path
    assert len(versions(client, "trained")) == 1


@pytest.mark.slow
def test_what_unity_catalog_asks_of_a_model_is_there(trained: tuple[Path, Config], client: Any, tmp_path: Path) -> None:
    from mlflow.store._unity_catalog.registry.rest_store import UcModelRegistryStore

    (version,) = versions(client, "trained")
    folder = client.download_artifacts(version.run_id, "checkpoint", str(tmp_path))
    UcModelRegistryStore._validate_model_signature(None, folder)


@pytest.mark.slow
def test_a_checkpoint_that_is_not_here_is_fetched(trained: tuple[Path, Config], client: Any, tmp_path: Path) -> None:
    path, config = trained
    set_alias(config, alias="champion", checkpoint_id=path.name)
    there = elsewhere(config, tmp_path)
    for reference in ("models:/trained@champion", "models:/trained/1"):
        found = resolve_checkpoint(there, reference)
        assert found == tmp_path / "fetched/two_tower" / path.name
    assert sorted(file.name for file in found.iterdir()) == sorted(FILES)
    assert load_checkpoint(found).checkpoint_id == path.name
    assert [file.name for file in found.parent.iterdir()] == [path.name]
    # What is here already is taken as it is, and no newest checkpoint was made.
    assert resolve_checkpoint(config, "models:/trained@champion") == path


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("lost", [False, True], ids=["altered", "lost"])
def test_files_that_are_not_the_checkpoint_are_refused(
    trained: tuple[Path, Config], server: Server, client: Any, tmp_path: Path, name: str, lost: bool
) -> None:
    (version,) = versions(client, "trained")
    (file,) = server.artifacts.rglob(f"{version.run_id}/artifacts/checkpoint/{name}")
    content = file.read_bytes()
    file.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
    if lost:
        file.unlink()
    try:
        with pytest.raises(GesrError, match="failed: " if lost else "models:/trained/1 is refused"):
            resolve_checkpoint(elsewhere(trained[1], tmp_path), "models:/trained/1")
    finally:
        file.write_bytes(content)
    assert not list((tmp_path / "fetched/two_tower").iterdir())


@pytest.mark.slow
def test_names_that_lead_nowhere_are_answered_with_what_there_is(trained: tuple[Path, Config], client: Any) -> None:
    path, config = trained
    set_alias(config, alias="champion", checkpoint_id=path.name)
    for reference, message in {
        "models:/trianed@champion": r"no registered model 'trianed'; it has .*trained",
        "models:/trained@chamipon": r"no alias 'chamipon'; it has champion \(version 1\)",
        "models:/trained/7": r"trained has no version 7; it has 1",
    }.items():
        with pytest.raises(InputError, match=message):
            resolve_checkpoint(config, reference)
    with pytest.raises(InputError, match="no version of trained is checkpoint 0123"):
        set_alias(config, alias="champion", checkpoint_id="0123")
    client.create_registered_model("foreign")
    (ours,) = versions(client, "trained")
    client.create_model_version("foreign", ours.source, ours.run_id, tags={CHECKPOINT_TAG: "../../etc/passwd"})
    with pytest.raises(InputError, match=r"no checkpoint that jobs/train.py registered: .*passwd"):
        resolve_checkpoint(config, "models:/foreign/1")


@pytest.mark.parametrize(
    "reference", ["models:/toy", "models:/toy/latest", "models:/a/b/3", "models:/toy@x/y", "models:/"]
)
def test_malformed_names_are_refused(tmp_path: Path, reference: str) -> None:
    with pytest.raises(ConfigurationError, match=r"expected models:/NAME@ALIAS or models:/NAME/VERSION"):
        resolve_checkpoint(training_sets.toy_config(tmp_path), reference)


def test_a_registry_that_does_not_answer_is_worth_a_retry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    overrides = told(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(GesrError, match=r"MLflow \(http://127.0.0.1:\d+\) failed: .*; see whether it runs") as err:
        resolve_checkpoint(training_sets.toy_config(tmp_path, *overrides), "models:/toy@champion")
    assert err.value.exit_code == 1
    # What was trained is trained.
    with caplog.at_level(logging.WARNING, logger="train"):
        path = train(tmp_path, *overrides)
    assert path == train(tmp_path)
    assert f"{path.name} is not registered; start the same training again to register it: MLflow" in caplog.text


def test_names_of_the_registry_need_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigurationError, match=r"--checkpoint is models:/toy/1, but mlflow is not installed"):
        resolve_checkpoint(training_sets.toy_config(tmp_path), "models:/toy/1")


def test_an_alias_needs_a_configured_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"training.mlflow_model is null"):
        set_alias(training_sets.toy_config(tmp_path), alias="champion", checkpoint_id="0123")
    with pytest.raises(ConfigurationError, match="mlflow_model is set, but mlflow_experiment"):
        training_sets.toy_config(tmp_path, "training.mlflow_model=toy")


@dataclass(frozen=True)
class World:
    """A toy world that knows the server, and its two registered checkpoints: versions 1 and 2."""

    toy: Toy
    config: Config
    first: Path
    second: Path

    def score(self, *overrides: str, target: str, checkpoint: str) -> None:
        from jobs import score_daily

        uri = self.config.training.mlflow_tracking_uri or ""
        two_waves = "scoring.shards_per_wave=3"
        score_daily.main(self.toy.args(*told(uri), two_waves, *overrides, target=target, checkpoint=checkpoint))

    def published(self, spark: SparkSession, target: str) -> list[tuple[Any, ...]]:
        from gesr_core.io.tables import read_table

        rows = read_table(spark, self.config.table(Role.SCORES, target=target))
        return sorted(tuple(row) for row in rows.drop("run_id", "generation").collect())

    def pinned(self, spark: SparkSession, target: str) -> list[dict[str, str]]:
        """The checkpoints of the runs of a target, by the ledger."""
        from gesr_core.sink.ledger import read_ledger
        from gesr_core.sink.run import JOB
        from tests.toy import DS

        rows = read_ledger(spark, self.config.table(Role.LEDGER), job=JOB, ds=DS, target=target)
        return [row.details["pins"]["checkpoint"] for row in rows if row.kind == "run_opened"]


@pytest.fixture(scope="module")
def world(spark_session: SparkSession, server: Server, tmp_path_factory: pytest.TempPathFactory) -> World:
    from jobs import export_items
    from tests.toy import Toy, toy_config, write_toy_checkpoint

    toy = Toy.build(spark_session, tmp_path_factory.mktemp("toy"))
    config = toy_config(toy.root, *told(server.uri))
    first = resolve_checkpoint(config, "gesr")
    second = write_toy_checkpoint(config, seed=2)
    assert [register_checkpoint(config, path) for path in (first, second)] == ["1", "2"]
    export_items.main(toy.args(*told(server.uri), target=None, checkpoint=f"models:/{MODEL}/2"))
    return World(toy, config, first, second)


@pytest.mark.spark
@pytest.mark.slow
def test_scoring_by_alias_publishes_the_same_table_as_by_path(
    world: World, spark: SparkSession, tmp_path: Path
) -> None:
    world.score(target="by_path", checkpoint=str(world.first))
    set_alias(world.config, alias="champion", checkpoint_id=world.first.name)
    # On a machine that has no checkpoint, and in a world whose newest is another.
    world.score(f"storage.checkpoints={tmp_path}", target="by_alias", checkpoint=CHAMPION)
    assert world.published(spark, "by_alias") == world.published(spark, "by_path")
    fetched = {"path": str(tmp_path / "gesr" / world.first.name), "id": world.first.name, "model": "gesr"}
    assert world.pinned(spark, "by_alias") == [{**fetched, "reference": CHAMPION}]


@pytest.mark.spark
@pytest.mark.slow
@pytest.mark.parametrize("point", ["after_wave_1", "after_publish"])
def test_an_alias_that_moves_before_a_resume_changes_nothing(
    world: World, spark: SparkSession, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    from jobs import score_daily

    def stop(name: str) -> None:
        if name == point:
            raise RuntimeError("the end of the process")

    target = f"moved_{point}"
    set_alias(world.config, alias="champion", checkpoint_id=world.first.name)
    with monkeypatch.context() as patch:
        patch.setattr(score_daily, "reach", stop)
        with pytest.raises(RuntimeError, match="the end of the process"):
            world.score(target=target, checkpoint=CHAMPION)
    set_alias(world.config, alias="champion", checkpoint_id=world.second.name)
    assert resolve_checkpoint(world.config, CHAMPION) == world.second
    world.score(target=target, checkpoint=CHAMPION)
    assert {checkpoint["id"] for checkpoint in world.pinned(spark, target)} == {world.first.name}
    assert {row[3] for row in world.published(spark, target)} == {world.first.name}
    # A further start is no resume: it says what stands there and what the name points at.
    with pytest.raises(InputError, match=rf"checkpoint \({world.first.name} before, {world.second.name} now\)"):
        world.score(target=target, checkpoint=CHAMPION)
