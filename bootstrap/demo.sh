#!/bin/sh
# demo.sh SAMPLE [DS]: from nothing to scored users of one day, step by step. `make demo` runs it in the environment.
set -eu
case $1 in
    ta_feng) env=local ds=${2:-2001-02-21} ;;
    movielens) env=movielens ds=${2:-1998-03-25} ;;
    *) echo "DATA=$1: there are the samples ta_feng and movielens" >&2; exit 2 ;;
esac
started=$(date +%s)
step() { sh bootstrap/timed.sh "$@"; }

step 'sample data'            spark-submit jobs/load_sample.py --env $env --sample "$1"
step 'histories'              spark-submit jobs/update_histories.py --env $env --ds "$ds"
step 'candidates'             spark-submit jobs/build_candidates.py --env $env --ds "$ds" --impressions
step 'training'               spark-submit jobs/train.py --env $env --ds "$ds"
step 'item states'            spark-submit jobs/export_items.py --env $env --ds "$ds"
step 'scores'                 spark-submit jobs/score_daily.py --env $env --ds "$ds"
step 'metrics'                spark-submit jobs/evaluate.py --env $env --ds "$ds"
step 'report'                 spark-submit jobs/report.py --env $env --ds "$ds"

echo "== all of it: $(($(date +%s) - started)) s"
cat <<END

The report of the day, to open in a browser: var/$env/reports/scores_$ds.html

Try next (after: source ${VIRTUAL_ENV:-.venv}/bin/activate):
  spark-submit jobs/score_daily.py --env $env --ds $ds     ends at once: this day is published already
  spark-submit jobs/score_daily.py --help                   what else can be asked of it
  make test                                                 the checks and all tests
END
