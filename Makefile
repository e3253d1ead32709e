# Everything runs in .venv, built from requirements/dev.lock. `make help` lists the targets.
PYTHON ?= python3.11
PRESET ?=
DATA ?=
TESTS ?= tests
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export HF_HUB_OFFLINE := 1
export DVC_NO_ANALYTICS := 1

.DEFAULT_GOAL := help
.PHONY: help setup run test test-containers soak check format lock bench images airflow clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-15s %s\n", $$1, $$2}' Makefile

# Re-done only when the lock, or the package's own description, changes.
.venv/locked: requirements/dev.lock
	@echo "building .venv from requirements/dev.lock; the first time this takes some minutes"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -qq --disable-pip-version-check -r requirements/dev.lock
	@touch $@

.venv/installed: .venv/locked pyproject.toml
	$(BIN)/python -m pip install -qq --disable-pip-version-check --no-build-isolation --no-deps --editable . --editable src/airflow_provider_kubeflow
	@touch $@

# Airflow has an environment of its own; pytest is there for the tests that need Airflow itself.
.venv-airflow/installed: requirements/airflow.lock src/airflow_provider_kubeflow/pyproject.toml
	@echo "building .venv-airflow from requirements/airflow.lock; the first time this takes some minutes"
	$(PYTHON) -m venv .venv-airflow
	.venv-airflow/bin/python -m pip install -qq --disable-pip-version-check -r requirements/airflow.lock
	.venv-airflow/bin/python -m pip install -qq --disable-pip-version-check -c requirements/airflow.lock $$(grep '^pytest==' requirements/dev.lock)
	.venv-airflow/bin/python -m pip install -qq --disable-pip-version-check --no-build-isolation --no-deps --editable src/airflow_provider_kubeflow
	@touch $@

setup: .venv/installed ## build the environment

run: setup ## run the whole graph; DATA=folder of images, PRESET=name of a file in presets/
	@$(if $(PRESET)$(DATA),prefrestore config use $(PRESET) $(if $(DATA),--data "$(DATA)"))
	@prefrestore pipeline dvc --write
	@dvc repro
	@prefrestore report

test: setup .venv-airflow/installed ## run all tests but those in containers; TESTS=path for some
	OMP_NUM_THREADS=1 pytest -n 2 --dist loadgroup --ignore=tests/integration/test_containers.py $(TESTS)

test-containers: setup ## run a pipeline in images built from docker/ (needs root, podman, runc, debootstrap)
	OMP_NUM_THREADS=1 pytest tests/integration/test_containers.py

soak: setup ## the long forms of tests/soak: faults, load, hostile input; takes hours, prints counts
	PREFRESTORE_SOAK=1 OMP_NUM_THREADS=1 pytest tests/soak

check: setup ## format, lint, types, import rules, configuration, dvc.yaml
	ruff format --check .
	ruff check .
	mypy
	lint-imports
	prefrestore config check
	prefrestore pipeline dvc --check

format: setup ## format the code and mend what ruff can mend
	ruff format .
	ruff check --fix .

lock: setup ## resolve requirements/*.lock again (needs an index; platform packages come with torch)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	uv pip compile -q --python-version 3.11 --no-header --no-annotate pyproject.toml | grep -Ev '^(nvidia-|cuda-|triton)' > requirements/run.lock
	uv pip compile -q --python-version 3.11 --no-header --no-annotate --extra dev pyproject.toml | grep -Ev '^(nvidia-|cuda-|triton)' > requirements/dev.lock
	uv pip compile -q --python-version 3.11 --no-header --no-annotate -c requirements/run.lock requirements/data.in -o requirements/data.lock
	uv pip compile -q --python-version 3.11 --no-header --no-annotate requirements/airflow.in -o requirements/airflow.lock

bench: setup .venv-airflow/installed ## run the comparisons in benchmarks/; each prints a table
	@for file in $$(grep -l __main__ benchmarks/*.py); do echo "== $$file"; $(BIN)/python "$$file" || exit 1; done

images: ## build the container images data, train, airflow; see docker/build.sh for BASE, PREFIX, BUILDER
	@docker/build.sh

airflow: setup .venv-airflow/installed ## Airflow on this machine with the DAGs, on loopback; see docs/operations.md
	@dags/standalone.sh

clean: ## remove what stages wrote and caches, but not the environment, the registry or releases
	rm -rf artifacts reports reports.run.json report.html .checkpoints .dvc/cache .dvc/tmp dvc.lock
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
