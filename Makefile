# `make demo` in a fresh clone needs nothing but Python 3.11 or newer; `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Bytecode is compiled on first import: compiling all of torch takes longer than the rest of the installation.
INSTALL := $(BIN)/pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt
# Where the environment forbids to keep it, every process would compile torch anew, for nine seconds.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup dev demo demo-rollout demo-prep test test-cluster lint bench bench-order bench-batches bench-prep bench-prep-plan gpu-check soak clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*##/\1	/p' $(MAKEFILE_LIST) | expand -t 14

setup: $(VENV)/.core  ## make .venv and install the package with what it needs to run
dev: $(VENV)/.dev  ## the same, with what the tests need

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "make: found $$($(PYTHON) --version), expected 3.11 or newer: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# A change of either file installs anew; .dev contains .core.
$(VENV)/.core: constraints.txt pyproject.toml | $(BIN)/python
	$(INSTALL) -e .
	touch $@

$(VENV)/.dev: constraints.txt pyproject.toml | $(BIN)/python
	$(INSTALL) -e '.[dev]'
	touch $(VENV)/.core $@

demo: setup  ## simulate, pack, train, evaluate and report: the whole thing on a laptop, into runs/demo
	launch/demo.sh

demo-rollout: setup  ## thirty seconds from one prompt, of make demo or of the run that comes along, measured by second, into runs/rollout
	launch/demo_rollout.sh

demo-prep: dev  ## fetch, cut, score, filter and pack: data preparation from a web server, into datasets/demo_prep
	launch/demo_prep.sh

lint: dev  ## ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# One thread: the operations of the tests are small, and some tests start a second process. A file of tests, which
# shares what it has prepared, stays in one process; conftest.py says which one begins.
test: lint  ## lint, then all tests, a process a core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder --ignore=tests/cluster

test-cluster: dev  ## training on a real Slurm of two nodes, which the tests start on this machine: needs Debian's packages
	@command -v sbatch >/dev/null || { echo "make: found no Slurm: apt-get install slurmctld slurmd slurm-client munge" >&2; exit 1; }
	@command -v pdsh >/dev/null && [ -x /usr/sbin/sshd ] || { echo "make: found no ssh: apt-get install openssh-server pdsh" >&2; exit 1; }
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile tests/cluster

# The peer of the denoiser comes with an extra of its own.
bench: setup  ## the speed of each part in ratios, beside peers and the limit of the machine: into bench/RESULTS.md, bench/out
	$(INSTALL) -e '.[bench]'
	$(BIN)/python bench/run.py

bench-order: setup  ## the order of 1 M to 100 M samples on 1,024 ranks, into bench/out/order.json
	$(BIN)/python bench/order.py

bench-batches: setup  ## how long a step takes in each bucket, with batches of equal time and with equal batches
	$(BIN)/python bench/batches.py

bench-prep: dev  ## cutting and encoding beside ffmpeg that decodes once, into bench/out/prep.json
	$(BIN)/python bench/prep/cutting.py

bench-prep-plan: dev  ## entering metadata and finding near duplicates at 1 M and 10 M lines
	$(BIN)/python bench/prep/plan.py

gpu-check: setup  ## first light on a GPU: is all of it right there, and how fast; ten minutes, docs/gpu.md
	$(BIN)/python bench/gpu_check.py

soak: dev  ## the long campaigns: damaged tars and videos, killed processes, orders, drawn examples, memory over 20,000 clips
	FAULT_RUNS=300 $(BIN)/python -m pytest tests/data/loader/test_workers.py
	PREP_RUNS=500 $(BIN)/python -m pytest tests/data_prep/test_campaign.py tests/data_prep/cut/test_exact.py \
	    tests/data_prep/test_pipeline.py
	ORDER_RUNS=10 $(BIN)/python -m pytest tests/data/order/test_mixture.py
	KILL_RUNS=100 $(BIN)/python -m pytest tests/training/test_kills.py
	$(BIN)/python -m pytest -m hypothesis --hypothesis-profile=new tests
	$(BIN)/python bench/soak_loader.py

clean:  ## remove .venv and what tools leave behind; datasets and runs stay
	rm -rf $(VENV) dist build .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
