"""Let the challenger take the champion's place where it is better on a ds that neither has learned from.

scores + challenger's scores of a ds + what was bought --> difference with its interval --> the alias `champion`
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial

from gesr_core.config import Config
from gesr_core.entry import job_config, job_parser, run_job
from gesr_core.errors import ConfigurationError
from gesr_core.evaluation.promotion import (
    decide,
    find_trained,
    name_champion,
    registered_model,
    require_decidable,
    require_out_of_sample,
)
from gesr_core.evaluation.reading import read_comparison
from gesr_core.io.session import open_session
from gesr_core.metrics.comparison import compare
from gesr_core.metrics.table import format_differences

_DESCRIPTION = f"""\
{__doc__}
Both have to be published for --ds: the champion to scores, the challenger by score_daily --target scores_challenger.
Over the users that both have, evaluation.promote_by (of evaluation.promote_segment) of the challenger minus that of the
champion decides: only when the whole 95 % interval lies above 0 is the challenger promoted. A ds whose labels either of
them may have seen in training or validation is in-sample and is refused (exit code 3). Whether promoted or kept, the
exit code is 0, and the last line says which.

The alias `champion` of the registered model training.mlflow_model is what moves, and score_daily follows it with
--checkpoint models:/NAME@champion. Without a registered model nothing moves, and the job says how to name a champion.

  promote.py --ds 2001-02-28 --dry-run
  promote.py --ds 2001-02-28 --challenger scores_two_tower
"""


def main(argv: Sequence[str]) -> None:
    """Compare, print the table and the decision, and promote.

    Raises:
        InputError: a publication or a checkpoint is missing, the label window is not complete, or the ds is in-sample.
    """
    args = _parse(argv)
    config = job_config(args)
    require_decidable(config.evaluation)
    with open_session(f"promote {args.ds}", spark_keys=config.spark) as spark:
        champion, challenger = (
            read_comparison(spark, config, ds=args.ds, target=target) for target in (args.target, args.challenger)
        )
        root = config.folder("checkpoints")
        reigning, rival = (find_trained(root, side.model_version) for side in (champion, challenger))
        print(f"champion   {reigning.describe(args.ds)}\nchallenger {rival.describe(args.ds)}", flush=True)
        require_out_of_sample(args.ds, [reigning, rival])
        if reigning.checkpoint_id == rival.checkpoint_id:
            print(f"kept: {args.challenger} was scored by the champion itself", flush=True)
            return
        differences = compare(challenger, champion, settings=config.evaluation)
    print(format_differences(differences, title=f"ds {args.ds}, {args.challenger} minus {args.target}"), flush=True)
    decision = decide(differences, settings=config.evaluation)
    if not decision.promote:
        print(f"kept: {decision.reason}", flush=True)
        return
    outcome = _dry(config) if args.dry_run else name_champion(config, rival)
    print(f"promoted{' (dry run)' if args.dry_run else ''}: {decision.reason}; {outcome}", flush=True)


def _dry(config: Config) -> str:
    model = registered_model(config)
    return "nothing was moved" + (
        f" of registered model {model}" if model else ", and no registered model is configured"
    )


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = job_parser("promote.py", _DESCRIPTION)
    parser.add_argument("--target", default="scores", help="the champion's table (default: scores)")
    parser.add_argument(
        "--challenger", default="scores_challenger", help="the challenger's table (default: scores_challenger)"
    )
    parser.add_argument("--dry-run", action="store_true", help="compare and decide, move nothing")
    args = parser.parse_args(argv)
    if args.target == args.challenger:
        raise ConfigurationError(f"--challenger {args.challenger} is the champion's table: name another")
    return args


run = partial(run_job, main)

if __name__ == "__main__":
    run()
