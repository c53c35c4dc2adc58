# Everyday commands. `make` alone lists them.
# Each does the set-up it needs by itself, once; the next call starts at once.

# The interpreter that a new .venv is made with (3.11 or newer).
PYTHON ?= python3

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slurm soak bench readme lint format

# The tools come from .venv, whatever the user's shell has activated. Only the set-up itself starts
# from the user's own interpreter (:= takes PATH as it is on that line).
.venv/.complete: export PATH := $(PATH)
export PATH := $(CURDIR)/.venv/bin:$(PATH)

help: ## List these commands
	@echo "Usage: make COMMAND"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "PYTHON=... names the interpreter for a new .venv, for example: make setup PYTHON=python3.12"

setup: .venv/.complete ## Install everything into .venv (the other commands do it when needed)
	@echo "The environment is ready: .venv"

.venv/.complete: envs/requirements.lock envs/development.lock envs/setup.sh envs/system.sh
	@PYTHON="$(PYTHON)" bash envs/setup.sh

demo: .venv/.complete ## Run the demo study, config/demo.yaml, and write its HTML report
	snakemake --profile profiles/local --configfile config/demo.yaml
	@mkdir -p results/demo/report
	snakemake --configfile config/demo.yaml --report results/demo/report/report.html
	@echo "The report: results/demo/report/report.html"

# A file's tests stay in one process: what they share (compiled loaders, small data sets) is made once.
test: .venv/.complete ## Run the tests, two at a time
	pytest -n 2 --dist loadfile

# One after the other: a study on the cluster keeps two cores busy by itself.
test-slurm: .venv/.complete ## Run the tests that start a SLURM of their own; needs root
	@bash envs/slurm.sh
	pytest tests/slurm

soak: .venv/.complete ## Run a study on a SLURM under random accidents for ten minutes; needs root
	@bash envs/slurm.sh
	pytest tests/slurm -m soak -s

# Those that need no GPU and no study of hours; docs/benchmarks.md and docs/estimators.md have more.
bench: .venv/.complete ## Run the benchmarks, each against a reference, in about ten minutes
	python benchmarks/estimators.py models --studies 10
	python benchmarks/influence_speed.py
	python benchmarks/influence_speed.py --models 7540 --examples 5000
	python benchmarks/fixed_transfers.py --images 500
	snakemake --profile profiles/local --configfile config/demo.yaml --until convert_dataset
	python benchmarks/training_throughput.py --cases small photographs --steps 4 \
		--small-batch-sizes 64 --images 128 --batch-size 32 --resolution 160 --repetitions 3
	python benchmarks/lost_records.py 300

readme: .venv/.complete ## Rewrite what README.md says of the demo, from its results
	python docs/demo_section.py

lint: .venv/.complete ## Check style, types and the workflow; changes nothing
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile rules
	snakemake --lint
	mypy

format: .venv/.complete ## Put the code into the house style; rewrite the config reference
	ruff format .
	ruff check --fix .
	snakefmt Snakefile rules
	python -m transfer_influence.config.reference
