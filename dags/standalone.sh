#!/usr/bin/env bash
# Airflow on this machine, on SQLite: all DAGs, a vote store in votes/, runs by `prefrestore pipeline run`, no cluster.
# Its state is in .airflow/; what PREFRESTORE_LOOP_* and AIRFLOW_* variables set beforehand stays as it is.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
port=${AIRFLOW_PORT:-8080}

default() { # variable, value
    [ -n "${!1:-}" ] || export "$1=$2"
}

if [ ! -d artifacts/candidates ] || [ ! -d artifacts/base ]; then
    echo "there are no artifacts yet: nightly_retrain makes its own, but realign_on_preferences needs them: make run" >&2
fi

local_program="\"program\": \"$root/.venv/bin/prefrestore\", \"folder\": \"$root\""
default AIRFLOW_HOME "$root/.airflow"
default AIRFLOW_CONN_KUBEFLOW_DEFAULT "{\"conn_type\": \"kubeflow\", \"extra\": {\"backend\": \"local\", $local_program}}"
default AIRFLOW_CONN_PREFRESTORE "{\"conn_type\": \"generic\", \"extra\": {$local_program}}"
default AIRFLOW__CORE__DAGS_FOLDER "$root/dags"
default AIRFLOW__CORE__LOAD_EXAMPLES False
default AIRFLOW__CORE__EXECUTION_API_SERVER_URL "http://127.0.0.1:$port/execution/"
default AIRFLOW__API__HOST 127.0.0.1
default AIRFLOW__API__PORT "$port"
default AIRFLOW__API__BASE_URL "http://127.0.0.1:$port"
default AIRFLOW__USAGE_DATA_COLLECTION__ENABLED False
default PREFRESTORE_LOOP_STORE "$root/votes"
default PREFRESTORE_LOOP_MINIMUM 20
default PREFRESTORE_LOOP_POLL_SECONDS 10
default PREFRESTORE_LOOP_RUN_POLL_SECONDS 5
default PREFRESTORE_LOOP_ARTIFACTS "$root/artifacts"
export PYTHONPATH=$root/dags
case $PREFRESTORE_LOOP_STORE in s3://*) ;; *) mkdir -p "$PREFRESTORE_LOOP_STORE" ;; esac
mkdir -p "$AIRFLOW_HOME"

# the login page's password is made by Airflow at the first start
echo "http://127.0.0.1:$port, user admin; password in $AIRFLOW_HOME/simple_auth_manager_passwords.json.generated"
echo "DAGs are paused until you switch them on; votes come from: prefrestore studio --candidates artifacts/candidates --votes votes"
PATH=$root/.venv-airflow/bin:$PATH exec airflow standalone
