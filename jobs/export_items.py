"""Encode the whole catalogue as of a ds for a checkpoint: what score_daily maps into memory.

items, events + checkpoint --> encoded features --> item states, only what is new or changed computed anew
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import pyarrow as pa
from pyspark.sql import SparkSession

from gesr_core.config import Config, FeaturesConfig, list_names
from gesr_core.entry import job_config, job_parser, run_job
from gesr_core.io.session import open_session
from gesr_core.io.tables import read_input, require_unique, table_detail, table_version
from gesr_core.names import Col, Role
from gesr_core.runtime.item_states import Catalogue, current_export, export_item_states, is_current
from gesr_core.training.checkpoint import Checkpoint, load_checkpoint
from gesr_core.training.data import index_of, sorted_by_key
from gesr_core.training.registry import resolve_checkpoint
from gesr_core.training_set import item_table

log = logging.getLogger("export_items")

_DESCRIPTION = """\
Write the item states of a checkpoint as of a day: the vectors of the whole catalogue, from the declared features and
statistics of the events before the request time. An item that is new since training is encoded from its features.
Rows that did not change since the checkpoint's last export are copied. Run again on the same tables, it does nothing.

  export_items.py --ds 2001-02-21                       the newest checkpoint of training.model
  export_items.py --ds 2001-02-21 --checkpoint two_tower
"""


def main(argv: Sequence[str]) -> None:
    """Read the catalogue, encode what changed, write."""
    args = _parse(argv)
    config = job_config(args)
    checkpoint = load_checkpoint(resolve_checkpoint(config, args.checkpoint))
    with open_session("export_items", spark_keys=config.spark) as spark:
        root = config.folder("item_states")
        since = current_export(root, checkpoint_id=checkpoint.checkpoint_id, ds=args.ds)
        pinned = _pinned(spark, config)
        if is_current(root, checkpoint_id=checkpoint.checkpoint_id, ds=args.ds, provenance=pinned):
            log.info("item states of %s for %s are there already, nothing to do", checkpoint.checkpoint_id, args.ds)
            return
        log.info("item states of %s %s for %s", checkpoint.model_name, checkpoint.checkpoint_id, args.ds)
        if args.dry_run:
            return
        items = _read_items(spark, config, checkpoint, pinned, ds=args.ds)
    started_s = time.monotonic()
    catalogue = _catalogue(items, checkpoint)
    model: Any = checkpoint.build()
    exported = export_item_states(
        root,
        checkpoint_id=checkpoint.checkpoint_id,
        ds=args.ds,
        catalogue=catalogue,
        encode=model.encode_items,
        provenance=pinned,
        since=since,
    )
    known = int((catalogue.features.index_R > 0).sum())
    log.info(
        "%s: %d items (%d with an id known to training), %d encoded and %d copied in %.1f s",
        exported.path, exported.rows, known, exported.encoded_rows, exported.rows - exported.encoded_rows,
        time.monotonic() - started_s,
    )  # fmt: skip


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = job_parser("export_items.py", _DESCRIPTION)
    parser.add_argument(
        "--checkpoint",
        metavar="NAME|NAME/ID|FOLDER|models:/NAME@ALIAS",
        help="a checkpoint, also of MLflow's registry (default: the newest of training.model)",
    )
    parser.add_argument("--dry-run", action="store_true", help="check checkpoint and tables, write nothing")
    return parser.parse_args(argv)


def _pinned(spark: SparkSession, config: Config) -> dict[str, Any]:
    refs = {role.value: config.table(role) for role in (Role.ITEMS, Role.EVENTS)}
    return {name: [table_detail(spark, ref).id, table_version(spark, ref)] for name, ref in refs.items()}


def _read_items(
    spark: SparkSession, config: Config, checkpoint: Checkpoint, pinned: dict[str, Any], *, ds: str
) -> pa.Table:
    # The features that the checkpoint was trained with, whatever is declared by now.
    features = FeaturesConfig.model_validate(checkpoint.manifest["inputs"]["configuration"]["features"])
    items_ref, events_ref = config.table(Role.ITEMS), config.table(Role.EVENTS)
    declared = [feature.name for feature in features.item]
    items = read_input(
        spark, items_ref, version=pinned[Role.ITEMS.value][1], features=declared, lists=list_names(features.item)
    )
    key = (Col.ITEM_ID, Col.VALID_FROM) if Col.VALID_FROM in items.columns else (Col.ITEM_ID,)
    require_unique(items, key, where=f"items ({items_ref.location})")
    events = read_input(spark, events_ref, version=pinned[Role.EVENTS.value][1])
    return item_table(items, events, ds=ds, features=features)


def _catalogue(items: pa.Table, checkpoint: Checkpoint) -> Catalogue:
    ordered = sorted_by_key(items)
    index = index_of(ordered)
    return Catalogue(index.key_R, index.value_R, checkpoint.features.encode_items(ordered))


run = partial(run_job, main)

if __name__ == "__main__":
    run()
