#!/bin/sh
# run.sh: an Airflow on this machine, to look at the DAGs and to run days of make demo's tables; `make airflow-up` runs it.
# Scheduler, DAG processor, triggerer and API server in one process tree, SQLite, nobody has to log in: loop-back only, and no
# pattern for a real installation. Ctrl-C ends it. Its files lie in var/airflow; PORT=8080.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
env=${ENV:-$root/.venv-airflow}
if [ ! -x "$env/bin/airflow" ]; then
    echo "run.sh: there is no Airflow in $env: make airflow" >&2
    exit 2
fi
export AIRFLOW_HOME="$root/var/airflow"
export PATH="$env/bin:$PATH" PYTHONPATH="$root"
export AIRFLOW__CORE__DAGS_FOLDER="$root/pipelines/airflow/dags"
export AIRFLOW__CORE__LOAD_EXAMPLES=false
export AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS=true
export AIRFLOW__API__HOST=127.0.0.1 AIRFLOW__API__PORT="${PORT:-8080}" AIRFLOW__API__WORKERS=1
export AIRFLOW__CORE__EXECUTION_API_SERVER_URL="http://127.0.0.1:${PORT:-8080}/execution/"
# two jobs at once at most: each is a Spark with the whole machine
export AIRFLOW__CORE__PARALLELISM=2
export AIRFLOW__SCHEDULER__DAG_DIR_LIST_INTERVAL=30
exec airflow standalone
