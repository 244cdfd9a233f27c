"""Pin what a run of score_daily reads: the newest state, or again what an unfinished run pinned. Driver only."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pyspark.resource import ResourceProfile
from pyspark.sql import DataFrame, SparkSession

from gesr_core.config import Config
from gesr_core.content import sha256_of
from gesr_core.daily.code import made_by
from gesr_core.daily.requests import sampled_requests, user_features
from gesr_core.errors import InputError
from gesr_core.executors import OnGrantedGpu, gpu_profile, probe_worker
from gesr_core.io.daily import InputTable, item_type, newest_days, read_daily
from gesr_core.io.retention import kept_days
from gesr_core.io.tables import files_are_gone, read_table
from gesr_core.join.requests import users_at
from gesr_core.join.shards import balanced_parts, pairs_per_shard
from gesr_core.names import Col, Role
from gesr_core.runtime.device import Sizes
from gesr_core.runtime.forms import EXACT, forms_of
from gesr_core.runtime.item_states import MANIFEST, load_item_states, resolve_item_states
from gesr_core.runtime.trial import TRIAL_TYPE, Trial, TryForms, choose_form
from gesr_core.runtime.worker import ScoreShards
from gesr_core.sink.run import PinnedTable, Pins, pin_table
from gesr_core.training.checkpoint import Checkpoint, load_checkpoint
from gesr_core.udf import choose_sizes, scoring_task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pinned:
    """What a run reads: the rows of each input, the checkpoint, where the item states lie, and the pins that say so."""

    inputs: Mapping[Role, InputTable]
    checkpoint: Checkpoint
    item_states: Path
    pins: Pins
    task: ScoreShards


def pin_newest(
    spark: SparkSession, config: Config, args: argparse.Namespace, *, known: Pins | None = None, log_plan: bool = False
) -> Pinned:
    """Check everything that scoring a `ds` needs, and pin its newest state.

    Args:
        spark: the session.
        config: the resolved configuration.
        args: the command line.
        known: pins whose digests hold where the version is the same, and whose parts and form are taken over; histories
            may then have moved on.
        log_plan: say what a run would read (`--dry-run`).

    Raises:
        InputError: a table, column, day, checkpoint or item states are missing.
        ConfigurationError: the device that is configured is not there, or no form that is allowed keeps the overlap.
    """
    checkpoint, scoring = asked_checkpoint(config, args), config.scoring
    states = resolve_item_states(config.folder("item_states"), checkpoint_id=checkpoint.checkpoint_id, ds=args.ds)
    profile = gpu_profile(spark, wanted=scoring.device, workers_per_gpu=scoring.workers_per_gpu)
    worker = probe_worker(spark, wanted=scoring.device, profile=profile)
    sizes = choose_sizes(scoring, worker, item_states=states)
    task = scoring_task(config, ds=args.ds, checkpoint=checkpoint, item_states=states, sizes=sizes)
    features = user_features(checkpoint)
    lists = checkpoint.features.user_lists
    inputs = read_daily(
        spark, config, ds=args.ds, user_features=features, user_lists=lists, without_histories=known is not None
    )
    tables = _pin_tables(inputs, ds=args.ds, features=features, known=known)
    _require_item_type(item_type(inputs[Role.CANDIDATES].df, Col.CANDIDATES), states)
    if tables[Role.CANDIDATES.value].digest.startswith("0:"):
        days = ", ".join(newest_days(read_table(spark, config.table(Role.CANDIDATES)), days=3)) or "none"
        raise InputError(
            f"candidates ({inputs[Role.CANDIDATES].location}) has no row for ds {args.ds}; its newest: {days}"
        )
    if known:
        form = known.form
    else:
        form = _decide_form(inputs, task, profile=profile, checkpoint=checkpoint, config=config, ds=args.ds)
    pins = Pins(
        tables,
        _named(checkpoint, args),
        {"path": str(states), "version": task.items_version, "sha256": sha256_of(states / MANIFEST)},
        config.scoring_hash(),
        vars(sizes),
        known.parts if known else _parts(inputs[Role.CANDIDATES].df, shards=scoring.shards),
        form,
        made_by(),
    )
    if not known:
        _warn_of_short_retention(spark, config, inputs)
    if log_plan:
        _log_plan(pins, device=worker.device, shards=scoring.shards)
    return Pinned(inputs, checkpoint, states, pins, _in_form(task, form))


def pin_again(spark: SparkSession, config: Config, ds: str, pins: Pins) -> Pinned:
    """Read again exactly what an unfinished run pinned.

    Raises:
        InputError: something of it is gone, or is another by now (a table made anew counts its versions anew).
    """
    checkpoint = load_checkpoint(Path(pins.checkpoint["path"]))
    if checkpoint.checkpoint_id != pins.checkpoint["id"]:
        raise InputError(
            f"{pins.checkpoint['path']} is no longer the checkpoint {pins.checkpoint['id']} that was pinned"
        )
    if not pins.sizes:
        raise InputError(
            "an earlier version of this job opened it, which did not record how much workers took on at once"
        )
    states = Path(pins.item_states["path"])
    task = scoring_task(config, ds=ds, checkpoint=checkpoint, item_states=states, sizes=Sizes(**pins.sizes))
    where = {Role(role): (table.location, table.version) for role, table in pins.inputs.items()}
    features = user_features(checkpoint)
    lists = checkpoint.features.user_lists
    try:
        inputs = read_daily(spark, config, ds=ds, user_features=features, user_lists=lists, pinned=where)
        tables = _pin_tables(inputs, ds=ds, features=features)
    except Exception as err:
        if not files_are_gone(err):
            raise
        versions = ", ".join(f"{role} version {table.version}" for role, table in pins.inputs.items())
        raise InputError(f"files of what was pinned ({versions}) were removed: a vacuum came between") from err
    changed = [role for role, table in tables.items() if table != pins.inputs[role]]
    if changed:
        raise InputError(f"{', '.join(changed)}: what stands there now is not what was pinned")
    return Pinned(inputs, checkpoint, states, pins, _in_form(task, pins.form))


def asked_checkpoint(config: Config, args: argparse.Namespace) -> Checkpoint:
    """Load the checkpoint that the command line asks for, by default the newest of `training.model`."""
    return load_checkpoint(args.checkpoint.path(config))


def _named(checkpoint: Checkpoint, args: argparse.Namespace) -> dict[str, str]:
    named = {"path": str(checkpoint.path), "id": checkpoint.checkpoint_id, "model": checkpoint.model_name}
    return {**named, "reference": args.checkpoint.reference} if args.checkpoint.is_registered else named


def _require_item_type(candidates: str, states: Path) -> None:
    exported = "string" if load_item_states(states, verify=False).index.value_R is not None else "bigint"
    if candidates != exported:
        raise InputError(f"candidates.item_id is {candidates}, but items.item_id is {exported}: make them one type")


def _parts(candidates: DataFrame, *, shards: int) -> dict[int, int]:
    """Return into how many parts to cut the shards that are too large; a pure function of what is pinned."""
    pairs = {row[Col.SHARD]: row["pairs"] for row in pairs_per_shard(candidates, shards=shards).collect()}
    parts = balanced_parts(pairs, shards=shards)
    mean = sum(pairs.values()) / shards
    for shard, count in parts.items():
        times = pairs[shard] / mean
        log.info("shard %d holds %.1f times the mean pairs of a shard: cut into %d parts", shard, times, count)
    return parts


def _decide_form(
    inputs: Mapping[Role, InputTable],
    task: ScoreShards,
    *,
    profile: ResourceProfile | None,
    checkpoint: Checkpoint,
    config: Config,
    ds: str,
) -> dict[str, Any]:
    """Decide the model's form; where there is more than the exact one, by trials on some requests of the `ds`."""
    scoring = config.scoring
    allowed = forms_of(scoring.precision, scoring.compile)
    if allowed == [EXACT]:
        return {}
    users = inputs[Role.CANDIDATES].df.select(Col.USER_ID).distinct().count()
    sample = sampled_requests(inputs, checkpoint, scoring, ds=ds, users=users)
    log.info("trying %s on some requests", ", ".join(map(str, allowed)))
    tried = sample.mapInArrow(OnGrantedGpu(TryForms(task, tuple(allowed))), TRIAL_TYPE, profile=profile)
    trials = [Trial(**row.asDict()) for row in tried.collect()]
    for trial in trials:
        log.info("%s", trial)
    form = choose_form(trials, least_overlap=scoring.least_overlap, allowed=allowed)
    log.info("scoring in %s", form)
    return {**vars(form), "trials": [vars(trial) for trial in trials]}


def _in_form(task: ScoreShards, pinned: Mapping[str, Any]) -> ScoreShards:
    form = {name: pinned[name] for name in vars(EXACT) if name in pinned}
    return replace(task, settings=replace(task.settings, **form))


def _pin_tables(
    inputs: Mapping[Role, InputTable], *, ds: str, features: Sequence[str], known: Pins | None = None
) -> dict[str, PinnedTable]:
    return {
        role.value: pin_table(
            _of_the_ds(role, inputs, ds=ds, features=features),
            location=table.location,
            version=table.version,
            table_id=table.table_id,
            known=known.inputs.get(role.value) if known else None,
        )
        for role, table in inputs.items()
    }


def _of_the_ds(role: Role, inputs: Mapping[Role, InputTable], *, ds: str, features: Sequence[str]) -> DataFrame:
    """The rows that scoring the `ds` reads: of `users`, those of its candidates, in the features that count then."""
    df = inputs[role].df
    if role is not Role.USERS:
        return df
    asked = inputs[Role.CANDIDATES].df.select(Col.USER_ID).distinct()
    return users_at(df, ds=ds, features=features).join(asked, on=Col.USER_ID, how="left_semi")


def _warn_of_short_retention(spark: SparkSession, config: Config, inputs: Mapping[Role, InputTable]) -> None:
    """Say of which inputs their owners will remove the pinned version before a replay of this run is given up."""
    wanted = config.retention.replay_days
    for role, table in inputs.items():
        days = kept_days(spark, replace(config.table(role), location=table.location))
        if days < wanted:
            log.warning(
                "%s (%s) keeps old versions for %g days: after that this run cannot be replayed, nor resumed "
                "(retention.replay_days is %d; its owner sets delta.deletedFileRetentionDuration and "
                "delta.logRetentionDuration)",
                role.value, table.location, days, wanted,
            )  # fmt: skip


def _log_plan(pins: Pins, *, device: str, shards: int) -> None:
    for role, table in pins.inputs.items():
        rows = table.digest.split(":")[0]
        log.info("%s: %s rows, version %d of %s", role, f"{int(rows):,}", table.version, table.location)
    log.info("checkpoint: %s", pins.checkpoint["path"])
    log.info("item states: %s", pins.item_states["path"])
    sizes = Sizes(**pins.sizes)
    bounded = f", {sizes.batch_bytes / 2**30:.1f} GiB" if sizes.batch_bytes else ""
    log.info("device: %s; a micro-batch holds at most %s pairs%s", device, f"{sizes.batch_pairs:,}", bounded)
    log.info("%d shards; everything that a run needs is there", shards)
