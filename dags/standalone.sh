#!/usr/bin/env bash
# Airflow on this machine, on SQLite: all DAGs, a vote store in votes/, runs by `prefrestore pipeline run`, no cluster.
# Its state is in .airflow/; what PREFRESTORE_LOOP_* and AIRFLOW_* variables set beforehand stays as it is.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
port=${AIRFLOW_PORT:-8080}
mkdir -p .airflow votes

if [ ! -d artifacts/candidates ] || [ ! -d artifacts/base ]; then
    echo "there are no artifacts yet: nightly_retrain makes its own, but realign_on_preferences needs them: make run" >&2
fi

local_program="\"program\": \"$root/.venv/bin/prefrestore\", \"folder\": \"$root\""
export AIRFLOW_HOME=$root/.airflow PYTHONPATH=$root/dags
export AIRFLOW__CORE__DAGS_FOLDER=$root/dags AIRFLOW__CORE__LOAD_EXAMPLES=False
export AIRFLOW__API__HOST=127.0.0.1 AIRFLOW__API__PORT=$port AIRFLOW__API__BASE_URL=http://127.0.0.1:$port
export AIRFLOW__CORE__EXECUTION_API_SERVER_URL=http://127.0.0.1:$port/execution/
export AIRFLOW__USAGE_DATA_COLLECTION__ENABLED=False
export AIRFLOW_CONN_KUBEFLOW_DEFAULT=${AIRFLOW_CONN_KUBEFLOW_DEFAULT:-"{\"conn_type\": \"kubeflow\", \"extra\": {\"backend\": \"local\", $local_program}}"}
export AIRFLOW_CONN_PREFRESTORE=${AIRFLOW_CONN_PREFRESTORE:-"{\"conn_type\": \"generic\", \"extra\": {$local_program}}"}
export PREFRESTORE_LOOP_STORE=${PREFRESTORE_LOOP_STORE:-$root/votes}
export PREFRESTORE_LOOP_MINIMUM=${PREFRESTORE_LOOP_MINIMUM:-20}
export PREFRESTORE_LOOP_POLL_SECONDS=${PREFRESTORE_LOOP_POLL_SECONDS:-10}
export PREFRESTORE_LOOP_RUN_POLL_SECONDS=${PREFRESTORE_LOOP_RUN_POLL_SECONDS:-5}
export PREFRESTORE_LOOP_ARTIFACTS=${PREFRESTORE_LOOP_ARTIFACTS:-$root/artifacts}

# the login page's password is made by Airflow at the first start
echo "http://127.0.0.1:$port, user admin; password in .airflow/simple_auth_manager_passwords.json.generated"
echo "DAGs are paused until you switch them on; votes come from: prefrestore studio --candidates artifacts/candidates --votes votes"
PATH=$root/.venv-airflow/bin:$PATH exec airflow standalone
