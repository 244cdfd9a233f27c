"""Train a model on labelled candidates of past days.

impressions, events, items, users --> training set (Parquet) --> checkpoint (safetensors and JSON)
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pyspark.sql import SparkSession

from gesr_core.config import Config
from gesr_core.entry import job_config, job_parser, run_job
from gesr_core.errors import ConfigurationError
from gesr_core.io.session import open_session
from gesr_core.training.trainer import open_training_set, require_libraries, train_checkpoint
from gesr_core.training_set import pin_inputs, write_training_set

log = logging.getLogger("train")

_DESCRIPTION = """\
Train one of the configured models on the impressions whose label windows close by the request time of --ds; the last
date validates. Vocabularies and statistics follow from what lay before the validation's request time alone; so do the
weights that are measured. Then, unless training.catch_up_rate is 0, the best epoch's weights learn the validation date
too, in one pass at that share of the rate: the metrics in the checkpoint's manifest are those before that pass.
Run again with the same data and configuration, it finds its checkpoint and trains nothing; a training that was killed
goes on after its last finished epoch.

  train.py --ds 2001-02-21                     the model that training.model names
  train.py --ds 2001-02-21 --model two_tower
  train.py --ds 2001-02-21 --set training.processes=2 --set training.precision=bf16
"""


def main(argv: Sequence[str]) -> None:
    """Write the training set if it is not there, train, and print the checkpoint."""
    parser = job_parser("train.py", _DESCRIPTION)
    parser.add_argument("--model", metavar="NAME", help="a model of conf/base/models.yaml (default: training.model)")
    parser.add_argument("--dry-run", action="store_true", help="check the inputs, say what would be done, do nothing")
    args = parser.parse_args(argv)
    config = job_config(args)
    model_name = args.model or config.training.model
    if model_name not in config.models:
        raise ConfigurationError(f"--model {model_name!r} is none of the configured models: {sorted(config.models)}")
    require_libraries(config)
    with open_session("train", spark_keys=config.spark) as spark:
        folder = _training_set(spark, config, ds=args.ds, dry_run=args.dry_run)
        if folder is not None and config.training.processes > 1:
            # Spark starts the processes: the session stays open.
            _train(folder, config, model_name=model_name, spark=spark)
    if folder is not None and config.training.processes == 1:
        # The session is closed: training has the machine to itself.
        _train(folder, config, model_name=model_name)


def _training_set(spark: SparkSession, config: Config, *, ds: str, dry_run: bool) -> Path | None:
    inputs = pin_inputs(spark, config, ds=ds)
    log.info(
        "train on %s, validate on %s; training set %s %s",
        ", ".join(inputs.train_dates),
        inputs.validation_date,
        inputs.folder,
        "is there" if inputs.exists else "is to be written",
    )
    if dry_run:
        return None
    if not inputs.exists:
        write_training_set(inputs, config)
    return inputs.folder


def _train(folder: Path, config: Config, *, model_name: str, spark: SparkSession | None = None) -> None:
    data = open_training_set(folder, reader=config.training.reader)
    log.info("checkpoint: %s", train_checkpoint(data, config, model_name=model_name, spark=spark))


run = partial(run_job, main)

if __name__ == "__main__":
    run()
