#!/bin/sh
# demo.sh DS: from nothing to scored users of one day, step by step. `make demo` runs it in the environment.
set -eu
ds=$1
started=$(date +%s)
step() { sh bootstrap/timed.sh "$@"; }

step 'sample data'            spark-submit jobs/load_sample.py --env local
step 'histories'              spark-submit jobs/update_histories.py --ds "$ds"
step 'candidates'             spark-submit jobs/build_candidates.py --ds "$ds" --impressions
step 'training'               spark-submit jobs/train.py --ds "$ds"
step 'item states'            spark-submit jobs/export_items.py --ds "$ds"
step 'scores'                 spark-submit jobs/score_daily.py --ds "$ds" --env local
step 'metrics'                spark-submit jobs/evaluate.py --ds "$ds"
step 'report'                 spark-submit jobs/report.py --ds "$ds"

echo "== all of it: $(($(date +%s) - started)) s"
cat <<END

The report of the day, to open in a browser: var/local/reports/scores_$ds.html

Try next (after: source ${VIRTUAL_ENV:-.venv}/bin/activate):
  spark-submit jobs/score_daily.py --ds $ds --env local     ends at once: this day is published already
  spark-submit jobs/score_daily.py --help                   what else can be asked of it
  make test                                                 the checks and all tests
END
