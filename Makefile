# Two commands on a fresh machine: `make demo` and `make test`. Both set up a virtual environment in .venv once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS := runner,demo,cluster,testing,dashboard,samplers,dev

.PHONY: help venv demo test slow lint bench baselines publish suite validate exhaust chaos attention adaptive clean

help:  ## What can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

venv: $(STAMP)  ## Set up the virtual environment, once

# torch first and alone: the constraints file names the one tested version, and a CPU build of it serves where no GPU is.
$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip==26.3'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	mkdir -p $(VENV)/links/steelyard
	for folder in results sim policies runner; do ln -sfn ../../../$$folder $(VENV)/links/steelyard/$$folder; done
	touch $@

demo: $(STAMP)  ## The whole loop on this machine: calibrate, simulate, search, replay, compare, report (ARGS=--json)
	$(BIN)/steelyard demo $(ARGS)

# Tracing every line doubles the time of numeric tests: CI asks for it (COVERAGE=--cov), people need not.
COVERAGE ?=

test: $(STAMP)  ## Tests (without slow ones and benchmarks); COVERAGE=--cov measures coverage by folder
	$(BIN)/pytest -n 2 --dist worksteal -m 'not slow and not bench' $(COVERAGE)

# Not traced: `make test` alone covers each folder by more than CI asks for, and what is not traced is faster.
# Two files with real lanes share the cores: they hold invariants, and part of their time is waiting.
COMPUTING := $(addprefix tests/runner/test_,validate.py adaptive_verbs.py attention_verbs.py attention_training.py capture.py)

slow: $(STAMP)  ## Tests that take longer: real lanes, kills, whole loops
	$(BIN)/pytest -n 2 --dist worksteal -m 'slow and not bench' $(COMPUTING) tests/system tests/policies tests/sim tests/results
	$(BIN)/pytest -n 2 --dist loadfile -m 'slow and not bench' tests/runner $(addprefix --ignore=,$(COMPUTING))

# No $(STAMP): whoever edits pyproject.toml can still lint without a network.
lint:  ## Style, types, import direction (needs `make venv` once)
	@test -x $(BIN)/ruff || { echo "run 'make venv' first" >&2; exit 1; }
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p steelyard
	$(BIN)/lint-imports --no-cache

bench: $(STAMP)  ## Benchmarks: ratios measured side by side in one run
	$(BIN)/pytest -m bench -s tests/bench

baselines: $(STAMP)  ## Record the shipped scenarios anew in results/baselines/, where a change of predictions is meant
	@for file in sim/scenarios/*.toml; do \
		name=$$(basename $$file .toml); ! grep -q "^lanes = " $$file || continue; runs=$$(mktemp -d); \
		$(BIN)/steelyard simulate $$name --runs $$runs >/dev/null \
			&& $(BIN)/steelyard gate $$runs --baseline results/baselines/$$name.json --update-baseline >/dev/null \
			&& rm -r $$runs && echo "wrote results/baselines/$$name.json" || exit 1; \
	done

publish: $(STAMP)  ## Write results/scoreboard/ anew: the figures that the README quotes (ARGS="demo bench": these alone)
	$(BIN)/python tests/bench/publish.py $(ARGS)

suite: $(STAMP)  ## Replay the suite (ARGS="--budget 40m"; goes on where it ended): results/scoreboard/suite.json
	$(BIN)/steelyard replay --suite $(ARGS)
	$(BIN)/python tests/bench/publish.py suite

exhaust: $(STAMP)  ## The whole library on 100,000 generated scenarios (a quarter of an hour): results/scoreboard/exhaust.json
	$(BIN)/python tests/exhaust.py $(ARGS)

chaos: $(STAMP)  ## Training under 50 kills, 20 hangs, 5 killed drivers, 5 full disks (half an hour): results/scoreboard/chaos.json
	$(BIN)/python tests/chaos.py $(ARGS)

attention: $(STAMP)  ## Train attention's weights anew, and judge them on clusters that it has not seen
	$(BIN)/steelyard attention train --out policies/weights/attention-trained.json
	$(BIN)/steelyard attention tune --out policies/weights/attention-tuned.json
	$(BIN)/steelyard attention tune --layers --worlds 8 --trials 40 --out policies/weights/attention-layers-tuned.json
	$(BIN)/steelyard attention tune --operators --worlds 15 --trials 50 --out policies/weights/attention-operators-tuned.json
	$(BIN)/steelyard attention score --out results/scoreboard/attention.json

adaptive: $(STAMP)  ## Judge the policies that change their plan, on runs that they were not tuned on
	$(BIN)/steelyard adaptive score --out results/scoreboard/adaptive.json

DATA ?= ../shared/data
validate: $(STAMP)  ## Predictions against published measurements (DATA=folder), next to two baselines
	$(BIN)/steelyard validate $(DATA) $(ARGS)

clean:  ## Remove what the tools left, not the runs
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.*
