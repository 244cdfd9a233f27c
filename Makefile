# Each target does all that it needs on a machine with git, make and a Python from 3.10 on. How: bootstrap/env.py.

# the demo's sample, ta_feng or movielens, and the day that it scores (empty: the sample's own, bootstrap/demo.sh)
DATA ?= ta_feng
DS ?=
# files of tests that run at a time, each process with a JVM of its own (2 GB)
WORKERS ?= 2
# main, or petastorm: the set of versions (constraints/)
STACK ?= main

# main goes into the environment that is active, else into .venv; petastorm always has its own. A name that a shell kept of an
# environment that is gone does not count.
ACTIVE := $(patsubst %/pyvenv.cfg,%,$(wildcard $(VIRTUAL_ENV)/pyvenv.cfg))
MAIN_ENV := $(or $(filter-out %/.venv-petastorm,$(ACTIVE)),$(CURDIR)/.venv)
PETASTORM_ENV := $(CURDIR)/.venv-petastorm
AIRFLOW_ENV := $(CURDIR)/.venv-airflow
ENV := $(if $(filter petastorm,$(STACK)),$(PETASTORM_ENV),$(MAIN_ENV))

SETUP = ENV="$(ENV)" sh bootstrap/python.sh -m bootstrap.env --stack $(STACK) --env "$(ENV)"
# as in the activated environment; another Spark that the shell names must not get in
IN_ENV = env -u SPARK_HOME -u SPARK_CONF_DIR VIRTUAL_ENV="$(ENV)" PATH="$(ENV)/bin:$$PATH"
TIMED = $(IN_ENV) sh bootstrap/timed.sh

.DEFAULT_GOAL := help
.PHONY: help env airflow airflow-up demo test test-main test-petastorm lint docs clean

help:
	@echo 'Scores every retrieved candidate of a day with an early-stage ranking model and publishes the best K per user.'
	@echo
	@echo '  make demo    from nothing to scored users: sample data, training, one scored day, metrics, report (DATA=$(DATA))'
	@echo '  make test    the checks, all tests, and the shorter pass in the other set of versions (constraints/petastorm.txt);'
	@echo '               one of the two alone: make test-main, make test STACK=petastorm'
	@echo '  make lint    the checks alone: ruff, mypy, import contracts, the documents and their links'
	@echo '  make docs    the documents as a site: var/docs/index.html'
	@echo '  make env     the environment alone; then: source .venv/bin/activate   (STACK=petastorm: .venv-petastorm)'
	@echo '  make airflow the environment of the DAGs alone (.venv-airflow); make airflow-up starts an Airflow in it, to look at them'
	@echo '  make clean   takes away the environments and all that set-up and local runs wrote'
	@echo
	@echo 'Needs git, make and a Python from 3.10 on; brings the rest. An active virtual environment, and a torch in it, are used'
	@echo 'as they are. For a CPU-only torch set PIP_EXTRA_INDEX_URL or UV_INDEX to an index that has it. PYTHON=... names a Python.'

env:
	@$(SETUP)

airflow:
	@ENV="$(AIRFLOW_ENV)" sh bootstrap/python.sh -m bootstrap.airflow --env "$(AIRFLOW_ENV)"

airflow-up: airflow
	@ENV="$(AIRFLOW_ENV)" sh pipelines/airflow/run.sh

demo: env
	@$(IN_ENV) sh bootstrap/demo.sh $(DATA) $(DS)

ifeq ($(STACK),petastorm)
test: test-petastorm
else
test: test-main
	@$(MAKE) --no-print-directory test-petastorm STACK=petastorm
endif

test-main: lint
	@$(TIMED) 'tests' python -m pytest -n $(WORKERS) --dist loadfile

# A missing petastorm would skip its tests, and that must not pass for success.
test-petastorm: env
	@$(IN_ENV) python -c 'import petastorm'
	@$(TIMED) 'tests, petastorm set' python -m pytest -m petastorm -n $(WORKERS) --dist loadfile

lint: env
	@$(TIMED) 'ruff check' ruff check
	@$(TIMED) 'ruff format' ruff format --check
	@$(TIMED) 'mypy' mypy
	@$(TIMED) 'import contracts' lint-imports --config setup.cfg
	@$(TIMED) 'documents' sh bootstrap/docs.sh

docs: env
	@$(TIMED) 'documents' sh bootstrap/docs.sh

clean:
	rm -rf .venv .venv-petastorm .venv-airflow var build spark-warehouse metastore_db derby.log *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
