# make demo    search a schedule on the digits with 50 % wrong labels, compare it on test data
# make test    all tests that this machine can run
# make readme  the blocks of README and the docs as printed, with the package from its wheel
# make docs    the site of the documentation, in build/site; warnings are errors
# make lint    ruff, mypy --strict, import-linter
# make hooks   the same and a few more checks before each of your commits
# make ray     optimize_batch on a local Ray cluster that loses a node (installs Ray, 200 MB)
# make faults  storms of kill -9, outages of the database; FAULT_SECONDS bounds each (default 600)
# make optuna48    the tests with Optuna 4.8, the oldest that is supported
# make audit   known vulnerabilities of the pinned packages (needs pypi.org)
# make bench-scale  ask time, SQL and size as studies grow; many workers on PostgreSQL and gRPC
# make bench   what the sampler and the training cost on this machine
# Each makes the environment .venv if it is missing.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -c constraints.txt
export OMP_NUM_THREADS ?= 1
unexport PYTHONDONTWRITEBYTECODE # tests start many interpreters: each would compile everything anew

.PHONY: demo test readme docs lint hooks ray bench bench-scale faults optuna48 audit clean

FAULT_SECONDS ?= 600
FAULT_EXAMPLES ?= 300
FAULT_RESULTS ?= build/faults
STORM := $(BIN)/python tests/faults/storm.py --seconds $(FAULT_SECONDS)
OPTUNA48_TESTS := tests --ignore tests/coteaching --ignore tests/dashboard

demo: .venv/.demo
	mkdir -p demo
	$(BIN)/s2e search --data digits --noise symmetric --noise-rate 0.5 --epochs 40 --trials 18 \
	    --storage sqlite:///demo/s2e.db --study-name digits-sym50 --seed 0
	$(BIN)/s2e evaluate --storage sqlite:///demo/s2e.db --study-name digits-sym50 --repeats 5 --out demo
	@echo "(s2e is in $(BIN). Resume or repeat: make demo, which goes on from demo/s2e.db.)"

test: .venv/.test
	$(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder

readme: .venv/.test
	$(BIN)/python tests/readme_blocks.py

docs: .venv/.docs
	rm -rf build/site docs/reference/api
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/site
	@echo "build/site/index.html"

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

hooks: .venv/.dev
	$(BIN)/pre-commit install

ray: .venv/.ray
	$(BIN)/python -m pytest -q tests/parallel/test_ray.py

faults: .venv/.test
	$(BIN)/python tests/faults/outage.py --json $(FAULT_RESULTS)/outage.json
	$(BIN)/python tests/faults/batch_storm.py --seconds $(FAULT_SECONDS) \
	    --json $(FAULT_RESULTS)/batches.json
	$(STORM) --storage sqlite --json $(FAULT_RESULTS)/sqlite.json
	$(STORM) --storage postgresql --crashes --json $(FAULT_RESULTS)/postgresql.json
	$(STORM) --storage grpc --trials 200 --kills 15 --json $(FAULT_RESULTS)/grpc.json
	$(STORM) --storage journal --trials 200 --kills 15 --json $(FAULT_RESULTS)/journal.json
	S2E_EXAMPLES=$(FAULT_EXAMPLES) $(BIN)/python -m pytest -q tests/sampler/test_state_machine.py \
	    tests/parallel/test_batch_machine.py
	S2E_EXAMPLES=40 S2E_STORAGE=sqlite:///:memory: $(BIN)/python -m pytest -q \
	    tests/sampler/test_state_machine.py

bench: .venv/.test
	$(BIN)/python tests/benchmarks/bench_overhead.py
	$(BIN)/python tests/benchmarks/bench_training.py

bench-scale: .venv/.test
	$(BIN)/python tests/benchmarks/bench_growth.py
	$(BIN)/python tests/benchmarks/bench_growth.py --generations 100000
	$(BIN)/python tests/benchmarks/bench_load.py
	$(BIN)/python tests/benchmarks/bench_load.py --grpc

# The same tests with the oldest Optuna that pyproject.toml allows, in an environment of its own.
optuna48: .venv-optuna48/.made
	.venv-optuna48/bin/python -m pytest -q -n auto $(OPTUNA48_TESTS)

# Known vulnerabilities of what constraints.txt names; asks pypi.org, and fails if that cannot say.
audit: .venv-audit/.made
	.venv-audit/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.demo: .venv/bin/python pyproject.toml constraints.txt
	@echo "Installing (a few minutes the first time) ..."
	$(PIP) -e ".[coteaching,dashboard]"
	touch $@

.venv/.test: .venv/bin/python pyproject.toml constraints.txt
	@echo "Installing (a few minutes the first time) ..."
	$(PIP) -e ".[test]"
	touch $@

.venv/.docs: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) -e ".[docs]"
	touch $@

.venv/.ray: .venv/.test
	$(PIP) -e ".[test,ray]"
	touch $@

.venv-audit/.made:
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip --disable-pip-version-check install --quiet pip-audit
	touch $@

.venv-optuna48/.made: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-optuna48
	sed 's/^optuna==.*/optuna==4.8.*/' constraints.txt > .venv-optuna48/constraints.txt
	.venv-optuna48/bin/python -m pip --disable-pip-version-check install --quiet \
	    -c .venv-optuna48/constraints.txt -e ".[test]"
	touch $@

.venv/.dev: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) -e ".[dev]"
	touch $@

clean:
	rm -rf .venv .venv-optuna48 .venv-audit demo
