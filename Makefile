# The only set-up that a machine with Python 3.11 needs:
#   make demo    install, fetch model and text, run the federation, show its privacy report
#   make test    install, fetch, lint, check types and arrows, run every test that is not slow

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help

PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := $(CURDIR)/.venv/bin
ROOMS := common client server simulations
HOLDERS ?= 10
WORKERS ?= 2
PYTEST_ARGS ?=
# A module's tests go to one worker, which makes once what they share: models, runs, federations.
# Modules keep the order of tests/conftest.py.
SPREAD = -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# Tests that are out of time have a minute to clear up and to say what failed (tests/told.py).
ENDED := timeout --kill-after=60
UTILITY_SCENARIOS ?= movies r8 shakespeare
UTILITY_ARGS ?=
KINDS ?=

export PATH := $(BIN):$(PATH)

.PHONY: help venv assets demo test test-all audit kills deployment architectures mutants bench bench-step first-words utility walk notebooks hooks lint format types arrows unit clean

help:
	@sed -n 's/^#   //p' Makefile
	echo "others: venv assets test-all audit kills deployment architectures mutants bench bench-step first-words utility walk notebooks hooks lint format types arrows unit clean"

venv: .venv/.installed

# torch comes first and alone: it is the large one, and a failure to get it should say so at once.
.venv/.installed: pyproject.toml constraints.txt
	@if [ -z "$(PYTHON)" ]; then echo "confide needs Python 3.11 or later; name it: make PYTHON=..." >&2; exit 1; fi
	echo "== venv: .venv by $(PYTHON)"
	[ -x .venv/bin/python ] || "$(PYTHON)" -m venv .venv
	.venv/bin/python -m pip install -q -c constraints.txt setuptools torch
	.venv/bin/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@

assets: venv
	@echo "== assets: models and text"
	confide assets fetch

# flwr starts a SuperLink of its own, detached, freezes its environment, says nothing of its
# process id, and returns 0 when the run failed. So: a private home and ports, a wrapper that notes
# the process id, and a run that is given its name beforehand and leaves a report, or the target
# fails.
demo: export FLWR_HOME := $(CURDIR)/.flwr
demo: export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION := 1
demo: export FLWR_TELEMETRY_ENABLED := 0
demo: export FLWR_DISABLE_UPDATE_CHECK := 1
demo: export RAY_USAGE_STATS_ENABLED := 0
demo: export RAY_ADDRESS := local
demo: export no_proxy := $(no_proxy),127.0.0.1,localhost,::1
demo: export NO_PROXY := $(NO_PROXY),127.0.0.1,localhost,::1
demo: assets
	@echo "== demo: flwr run . with $(HOLDERS) holders"
	mkdir -p "$$FLWR_HOME/bin" runs
	read -r port control < <(python -c 'import socket as s; a, b = s.socket(), s.socket(); a.bind(("127.0.0.1", 0)); b.bind(("127.0.0.1", 0)); print(a.getsockname()[1], b.getsockname()[1])')
	export FLWR_LOCAL_SUPERLINK_HTTP_API_PORT=$$port FLWR_LOCAL_CONTROL_API_PORT=$$control
	pid_file="$$FLWR_HOME/superlink-$$$$.pid"
	run="$$(date -u +%Y%m%d-%H%M%S)-demo-$$$$"
	wrapper="$$FLWR_HOME/bin/flower-superlink"
	printf '#!/bin/sh\necho $$$$ > "$$CONFIDE_SUPERLINK_PID"\nexec "$(BIN)/flower-superlink" "$$@"\n' > "$$wrapper"
	chmod +x "$$wrapper"
	export CONFIDE_SUPERLINK_PID="$$pid_file"
	end_superlink() {
		if [ -s "$$pid_file" ]; then
			group=$$(cat "$$pid_file")
			kill -TERM -- "-$$group" 2>/dev/null || true
			for _ in {1..60}; do kill -0 "$$group" 2>/dev/null || break; sleep 0.25; done
			kill -KILL -- "-$$group" 2>/dev/null || true
		fi
		rm -f "$$pid_file"
	}
	trap end_superlink EXIT
	trap 'exit 130' INT TERM
	PATH="$$FLWR_HOME/bin:$$PATH" flwr run . --stream \
		--federation-config "num-supernodes=$(HOLDERS) client-resources-num-cpus=1" \
		--run-config "run.out='$(CURDIR)/runs' run.id='$$run'"
	if [ ! -f "runs/$$run/report.json" ]; then
		echo "error [run.failed] The run left no report; the log is $$FLWR_HOME/local-superlink/superlink.log" >&2
		exit 1
	fi
	confide report show "runs/$$run"
	echo "run folder: $(CURDIR)/runs/$$run"

# One name for the rooms: tools that read files rather than import them see .typing/confide.
.typing: $(wildcard confide/*)
	@mkdir -p .typing/confide
	find .typing/confide -type l -delete
	for path in confide/*.py confide/py.typed; do ln -s "../../$$path" .typing/confide/; done
	for room in $(ROOMS); do ln -s "../../$$room" .typing/confide/; done
	touch .typing

lint: venv
	@echo "== lint: ruff check"
	timeout 120 ruff check .
	echo "== lint: ruff format --check"
	timeout 120 ruff format --check .

types: venv .typing
	@echo "== types: mypy --strict"
	timeout 900 mypy

arrows: venv .typing
	@echo "== arrows: import-linter"
	cd .typing
	timeout 120 lint-imports --config ../pyproject.toml --no-cache

# A ledger is synced at every charge, which is most of what a tiny run waits for: where memory has
# room, the tests' files lie there. Some tests are other users, who must get in; paths of sockets are
# short.
unit: assets
	@echo "== tests: all but the slow ones"
	if [ "$$(df --output=avail -BG /dev/shm 2>/dev/null | tail -1 | tr -dc 0-9)" -ge 8 ] 2>/dev/null; then
		TMPDIR=$$(mktemp -d /dev/shm/XXXXX)
		export TMPDIR
		chmod 1777 "$$TMPDIR"
		trap 'rm -rf "$$TMPDIR"' EXIT
	fi
	$(ENDED) 2400 pytest -m "not slow" $(SPREAD) $(PYTEST_ARGS)

test: lint types arrows unit
	@echo "== all is well"

test-all: lint types arrows assets
	@echo "== tests: all"
	$(ENDED) 5400 pytest $(SPREAD) $(PYTEST_ARGS)

# 200 kills of a holder, and a power failure at every byte of a round; about ten minutes.
kills: venv
	@echo "== tests: kills and power failures"
	timeout 3600 pytest -m slow tests/crash $(PYTEST_ARGS)

# Coordinator and holders as processes: what dies or is cut off in mid-round, a bad line, the demo's own
# model, an installation from nothing; half an hour, an hour and more beside other work.
# Needs nginx, and root for the bad line. Says what a round costs beside training.
deployment: assets
	@echo "== tests: deployment"
	timeout 7200 pytest -s tests/deployment $(PYTEST_ARGS)

# What an epsilon rests on, seen from all sides: two texts that differ in one record, n against n + 1,
# claims under adaptive runs, forged reports. Prints what it counted; ten minutes.
audit: assets
	@echo "== audit: nothing but the noisy sum; the claim; the report"
	timeout 3600 pytest -s tests/client/test_non_interference.py tests/client/test_count_hidden.py \
		tests/common/privacy/test_budget.py tests/common/privacy/test_filters.py \
		tests/server/report/test_forgeries.py tests/server/report/test_verify.py $(PYTEST_ARGS)

# Per-example gradients of every type of model in docs/models.md against plain PEFT, one text at a
# time; prints the table, and fails where the page says something else. Two minutes, if nothing else runs.
architectures: venv
	@echo "== architectures: exact, refused, untried"
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 timeout 7200 python -W ignore -m tests.client.matrix $(KINDS)

# Some hundred and forty faults, each of which a test must find; an hour or two.
mutants: assets
	@echo "== tests: mutants"
	timeout 14400 python tests/mutants/run.py

# The tables of docs/benchmarks.md; hours on two cores.
bench: assets
	@confide assets fetch movies
	echo "== bench: what privacy costs in accuracy"
	confide bench utility nyt --seeds 5
	confide bench utility movies --seeds 5

# The table of methods, about five hours of one core that multiplies bfloat16. A run that is in
# docs/utility already is not done again: stop it when you like, start it again, and commit what it
# added. UTILITY_ARGS may narrow it. Texts are small parts of the scenarios', and rounds half as many.
utility: assets
	@confide assets fetch movies r8 shakespeare
	echo "== utility: methods by epsilon and partition"
	for scenario in $(UTILITY_SCENARIOS); do
		case $$scenario in
			movies) args=(--limit 1200 --set round.count=10 --set train.lr=5) ;;
			r8) args=(--limit 1200 --set round.count=10 --set train.max-length=32 --set lora.rank=4 --set lora.layers=1) ;;
			shakespeare) args=(--limit 300 --set round.count=2 --set train.max-length=32) ;;
			*) args=() ;;
		esac
		args+=(--set model.dtype=bfloat16)
		confide bench utility $$scenario --methods all --epsilons off,8,3,1 \
			--partitions iid,dirichlet,natural --seeds 5 --tune-rates 5 \
			--out docs/utility/$$scenario.jsonl "$${args[@]}" $(UTILITY_ARGS)
	done

# Ratios of interleaved steps; nothing else should run meanwhile. About an hour on one core.
bench-step: assets
	@echo "== bench: time and memory of a private step"
	confide bench step --threads 1 --epoch

# Seconds until ten mistakes are told, as in docs/benchmarks.md; two minutes.
first-words: venv
	@echo "== bench: first words"
	timeout 1200 python tests/first_words.py

# The way of one request: modules, and how often it changes from one to another.
walk: venv
	@HF_HUB_OFFLINE=1 python -W ignore -m tests.walk

# The examples as notebooks; a test holds each against its script.
notebooks: venv
	@jupytext --quiet --to ipynb examples/*.py

# Lets git run lint, types and arrows before each commit.
hooks:
	@git config core.hooksPath .githooks
	echo "git runs .githooks/pre-commit before each commit; undo: git config --unset core.hooksPath"

format: venv
	@ruff check --fix .
	ruff format .

clean:
	@rm -rf .typing .flwr build dist ./*.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis ./*.fab
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
