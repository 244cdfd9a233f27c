"""Checkpoints in MLflow's model registry: registered, named by an alias, found again. Driver only, no JVM.

A version's source is the checkpoint's folder among its run's artifacts: any machine that reaches the server can fetch
it from there, and a server takes a path of ours for none of its business. Jobs and executors read checkpoints under
`storage.checkpoints` as ever: what is not there is fetched. Nothing that a registry says of files is believed: the
version's tags name the checkpoint, whose id is the hash of what it holds.
"""

from __future__ import annotations

import difflib
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gesr_core.config import Config, TrainingConfig
from gesr_core.content import sha256_of
from gesr_core.errors import ConfigurationError, GesrError, InputError
from gesr_core.training.checkpoint import (
    FEATURES,
    MANIFEST,
    WEIGHTS,
    load_checkpoint,
    move_into_place,
    resolve_checkpoint as resolve_in_folder,
)
from gesr_core.training.tracking import (
    ARTIFACTS,
    CHECKPOINT_TAG,
    SHA256_TAG,
    experiment_id,
    log_checkpoint,
    mlflow_client,
    require_mlflow,
    server_name,
)

log = logging.getLogger(__name__)

SCHEME: Final = "models:/"
MODEL_TAG: Final = "gesr.model"
_REFERENCE: Final = re.compile(r"models:/(?P<model>[^/:@]+)(?:@(?P<alias>[\w.-]+)|/(?P<version>\d+))")
_FORMS: Final = "models:/NAME@ALIAS or models:/NAME/VERSION"
_ABSENT: Final = ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND")
_FORBIDDEN: Final = ("PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED")


@dataclass(frozen=True)
class _Version:
    """A version that is a checkpoint: where its files are and what they must be."""

    reference: str
    source: str
    model_name: str
    checkpoint_id: str
    sha256: str


class AskedCheckpoint:
    """What `--checkpoint` names (None: nothing); looked up when it is first needed, and once, for an alias may move."""

    def __init__(self, reference: str | None) -> None:
        self.reference = reference
        self._path: Path | None = None

    @property
    def is_registered(self) -> bool:
        """Whether it is one of the registry's names."""
        return is_registered(self.reference)

    def path(self, config: Config) -> Path:
        """The checkpoint's folder; raises what `resolve_checkpoint` does."""
        if self._path is None:
            self._path = resolve_checkpoint(config, self.reference)
        return self._path


def is_registered(reference: str | None) -> bool:
    """Say whether a checkpoint is named by one of the registry's names."""
    return reference is not None and reference.startswith(SCHEME)


def resolve_checkpoint(config: Config, reference: str | None) -> Path:
    """Turn what `--checkpoint` names into a checkpoint's folder; None: the newest of `training.model`.

    What the registry names and `storage.checkpoints` does not hold is fetched, whole or not at all.

    Raises:
        InputError: there is none; names what there is. Or what the registry holds is not that checkpoint.
        ConfigurationError: a malformed name, no MLflow, or credentials that the server does not take.
        GesrError: the registry does not answer.
    """
    root = config.folder("checkpoints")
    if reference is None or not is_registered(reference):
        return resolve_in_folder(root, reference or config.training.model)
    section = config.training
    asked = _REFERENCE.fullmatch(reference)
    if asked is None:
        raise ConfigurationError(f"--checkpoint {reference}: expected {_FORMS}")
    require_mlflow(asked_by=f"--checkpoint is {reference}", instead="name a checkpoint of storage.checkpoints")
    with _answers(section):
        client = mlflow_client(section)
        number = asked["version"] or _version_behind(client, asked["model"], asked["alias"], section)
        version = _version(client, asked["model"], number)
        path = root / version.model_name / version.checkpoint_id
        if not (path / MANIFEST).is_file():
            _fetch(version, path, section)
    log.info("%s is checkpoint %s/%s", reference, version.model_name, version.checkpoint_id)
    return path


def register_checkpoint(config: Config, path: Path) -> str:
    """Make a checkpoint a version of `training.mlflow_model`, and return its number; once is enough.

    Raises:
        ConfigurationError: no model is configured, or credentials are refused.
        GesrError: the server does not answer.
    """
    section = config.training
    model = _configured_model(section)
    checkpoint = load_checkpoint(path)
    with _answers(section):
        client = mlflow_client(section)
        _create_model(client, model)
        if (known := _version_of(client, section, model, checkpoint.checkpoint_id)) is not None:
            return known
        run = _run_of(client, section, path, name=checkpoint.model_name)
        tags = {
            CHECKPOINT_TAG: checkpoint.checkpoint_id,
            MODEL_TAG: checkpoint.model_name,
            SHA256_TAG: sha256_of(path / MANIFEST),
        }
        source = f"{run.info.artifact_uri}/{ARTIFACTS}"
        return str(client.create_model_version(model, source, run.info.run_id, tags=tags).version)


def set_alias(config: Config, *, alias: str, checkpoint_id: str) -> None:
    """Point an alias of `training.mlflow_model` at the version that is a checkpoint.

    Raises:
        InputError: no version is that checkpoint.
        ConfigurationError: no model is configured, or credentials are refused.
        GesrError: the server does not answer.
    """
    section = config.training
    model = _configured_model(section)
    with _answers(section):
        client = mlflow_client(section)
        version = _version_of(client, section, model, checkpoint_id)
        if version is None:
            raise InputError(
                f"no version of {model} is checkpoint {checkpoint_id}; start the training that made it again, with "
                "training.mlflow_model set: it trains nothing and registers it"
            )
        client.set_registered_model_alias(model, alias, version)


@contextmanager
def _answers(section: TrainingConfig) -> Iterator[None]:
    """Turn what the client fails with into errors with an exit code.

    Raises:
        ConfigurationError: the server refuses our credentials.
        GesrError: it does not answer, or not as it should.
    """
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as err:
        reason = str(err).splitlines()[0] if str(err) else type(err).__name__
        if getattr(err, "error_code", None) in _FORBIDDEN:
            raise ConfigurationError(
                f"MLflow ({server_name(section)}) refuses: {reason}; check its credentials"
            ) from err
        raise GesrError(
            f"MLflow ({server_name(section)}) failed: {reason}; see whether it runs, then try again"
        ) from err


def _configured_model(section: TrainingConfig) -> str:
    if section.mlflow_model is None:
        raise ConfigurationError("training.mlflow_model is null: name the registered model that checkpoints belong to")
    require_mlflow(asked_by="training.mlflow_model is set", instead="set it to null")
    return section.mlflow_model


def _found(ask: Callable[[], Any]) -> Any | None:
    """What the registry has; None where it says that there is no such thing."""
    from mlflow.exceptions import MlflowException

    try:
        return ask()
    except MlflowException as err:
        if err.error_code in _ABSENT:
            return None
        raise


def _version_behind(client: Any, model: str, alias: str, section: TrainingConfig) -> str:
    registered = _found(lambda: client.get_registered_model(model))
    if registered is None:
        known = [found.name for found in client.search_registered_models()]
        raise InputError(f"MLflow ({server_name(section)}) has no registered model {model!r}{_instead(model, known)}")
    if alias not in registered.aliases:
        known = [f"{name} (version {version})" for name, version in sorted(registered.aliases.items())]
        raise InputError(f"{model} has no alias {alias!r}{_instead(alias, known)}; jobs/promote.py sets one")
    return str(registered.aliases[alias])


def _version(client: Any, model: str, number: str) -> _Version:
    found = _found(lambda: client.get_model_version(model, number))
    if found is None:
        raise InputError(
            f"{model} has no version {number}{_instead(number, [v.version for v in _versions(client, model)])}"
        )
    name, checkpoint_id, sha256 = (found.tags.get(tag, "") for tag in (MODEL_TAG, CHECKPOINT_TAG, SHA256_TAG))
    # They become parts of a path.
    if not re.fullmatch(r"[A-Za-z_]\w*", name) or not re.fullmatch(r"[0-9a-f]{16}", checkpoint_id):
        raise InputError(
            f"version {number} of {model} is no checkpoint that jobs/train.py registered: its tags {MODEL_TAG} and "
            f"{CHECKPOINT_TAG} are {name!r} and {checkpoint_id!r}"
        )
    return _Version(f"{SCHEME}{model}/{number}", found.source, name, checkpoint_id, sha256)


def _instead(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.4) or sorted(known)[:5]
    return f"; it has {', '.join(map(str, near))}" if near else "; it has none"


def _versions(client: Any, model: str) -> Iterator[Any]:
    token: str | None = None
    while True:
        page = client.search_model_versions(f"name = '{model}'", page_token=token)
        yield from page
        if not (token := page.token):
            return


def _version_of(client: Any, section: TrainingConfig, model: str, checkpoint_id: str) -> str | None:
    """The newest version that is a checkpoint, found by its run: Unity Catalog lists versions without their tags."""
    having = f"tags.`{CHECKPOINT_TAG}` = '{checkpoint_id}'"
    runs = {run.info.run_id for run in client.search_runs([experiment_id(client, section)], filter_string=having)}
    numbers = [int(version.version) for version in _versions(client, model) if version.run_id in runs]
    return str(max(numbers)) if numbers else None


def _create_model(client: Any, model: str) -> None:
    if _found(lambda: client.get_registered_model(model)) is None:
        client.create_registered_model(model)


def _run_of(client: Any, section: TrainingConfig, path: Path, *, name: str) -> Any:
    """The run that has the checkpoint among its artifacts: its training's, else one that is made for it."""
    experiment = experiment_id(client, section)
    having = f"tags.`{SHA256_TAG}` = '{sha256_of(path / MANIFEST)}'"
    if runs := client.search_runs([experiment], filter_string=having, max_results=1):
        return runs[0]
    run = client.create_run(experiment, run_name=name)
    log_checkpoint(client, run.info.run_id, path)
    client.set_terminated(run.info.run_id)
    return run


def _fetch(version: _Version, path: Path, section: TrainingConfig) -> None:
    """Download a checkpoint, check it, and put it where checkpoints are.

    Raises:
        InputError: what was downloaded is not that checkpoint.
    """
    from mlflow.artifacts import download_artifacts

    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".fetching-", dir=path.parent))
    draft = scratch / path.name
    try:
        for name in (MANIFEST, FEATURES, WEIGHTS):
            where = f"{version.source}/{name}"
            download_artifacts(artifact_uri=where, dst_path=str(draft), tracking_uri=section.mlflow_tracking_uri)
        _require_checkpoint(draft, version)
        move_into_place(draft, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    log.info("fetched %s to %s", version.reference, path)


def _require_checkpoint(draft: Path, version: _Version) -> None:
    refused = f"{version.reference} is refused, what MLflow holds ({version.source}) is not checkpoint"
    if sha256_of(draft / MANIFEST) != version.sha256:
        raise InputError(f"{refused} {version.checkpoint_id}: {MANIFEST} was altered; train and register it again")
    try:
        found = load_checkpoint(draft)
    except (InputError, json.JSONDecodeError, KeyError) as err:
        raise InputError(f"{refused} {version.checkpoint_id}: {err}") from err
    if found.model_name != version.model_name:
        raise InputError(f"{refused} {version.model_name}/{version.checkpoint_id}, but one of {found.model_name}")
