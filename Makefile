# Needs make and Python >= 3.11. Everything else goes into .venv, and nothing outside the checkout is touched
# but pip's own cache. `make PYTHON=python3.12 ...` chooses the interpreter.

PYTHON ?=
BIN := .venv/bin
# Holds the checkout's path: a .venv that was copied or moved along with its checkout points at the old place.
STAMP := .venv/installed-for

# Prefect lives inside the checkout, and neither a profile nor a PREFECT_* variable of the user's decides
# where its API is. A setting given to make itself counts: `make demo PREFECT_LOGGING_LEVEL=DEBUG`.
unexport $(foreach name,$(filter PREFECT_%,$(.VARIABLES)),$(if $(findstring environment,$(origin $(name))),$(name)))
export PREFECT_HOME := $(CURDIR)/.prefect-home
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DO_NOT_TRACK := 1

.PHONY: help install demo test lint format types contracts bench clean FORCE

help:
	@echo "make install    everything into .venv, with the versions of constraints.txt"
	@echo "make demo       the nightly job over the standard library's docstrings, on a simulated provider"
	@echo "make test       every test; ARGS='-k name' narrows"
	@echo "make lint       ruff; 'make format' mends what can be mended"
	@echo "make types      mypy --strict"
	@echo "make contracts  which room may import which"
	@echo "make bench      every benchmark; NAME=import runs one"
	@echo "make clean      removes all that these targets made"

install: $(STAMP)

ifneq ("$(shell cat $(STAMP) 2>/dev/null)","$(CURDIR)")
$(STAMP): FORCE
endif

$(STAMP): pyproject.toml constraints.txt
	@set -eu; \
	recent() { "$$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }; \
	found=; \
	for python in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11 python); do \
	  if recent "$$python"; then found="$$python"; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "prefect-llm-tiers needs Python 3.11 or newer; $(or $(PYTHON),python3) is" \
	    "$$("$(or $(PYTHON),python3)" --version 2>&1 || true). Name one: make $(or $(MAKECMDGOALS),install) PYTHON=/path/to/python3.11" >&2; \
	  exit 1; \
	fi; \
	if [ "$$(cat $(STAMP) 2>/dev/null)" != "$(CURDIR)" ] || ! recent $(BIN)/python || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  echo "Making .venv with $$("$$found" --version)"; \
	  "$$found" -m venv --clear .venv; \
	fi; \
	rm -f $(STAMP); \
	echo "Installing the versions of constraints.txt (the first time takes minutes)"; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' --constraint constraints.txt; \
	printf '%s\n' "$(CURDIR)" > $(STAMP)

demo: $(STAMP)
	@$(BIN)/python flows/nightly_docs.py $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

lint: $(STAMP)
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check

format: $(STAMP)
	$(BIN)/python -m ruff check --fix
	$(BIN)/python -m ruff format

types: $(STAMP)
	$(BIN)/python -m mypy

contracts: $(STAMP)
	$(BIN)/lint-imports --no-logo --no-cache

bench: $(STAMP)
	@$(BIN)/python -m benchmarks $(NAME)

clean:
	rm -rf .venv .prefect-home .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
