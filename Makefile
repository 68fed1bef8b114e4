# Works on a new machine: the first target that needs it makes .venv and installs the tested versions.
#   make demo      the first five minutes, offline after the install
#   make test      format, lint, types, layers, fast tests: what CI runs
#   make check     the same without tests that start processes or compare with other libraries
#   make claims    measure every claim again and rewrite lightwork/claims/results.json and the README's table
#   make bench     every comparison in benchmarks/
#   make site      the docs as a site, in site/

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
FAST := not slow and not gpu

.PHONY: demo test check check-slow claims bench docs site format install static

demo: $(BIN)/lightwork
	$(BIN)/lightwork demo

test: static
	$(BIN)/python -m pytest -m "$(FAST)"

check: static
	$(BIN)/python -m pytest -m "$(FAST) and not multiproc and not peer"

check-slow: $(BIN)/lightwork
	$(BIN)/python -m pytest -m "slow and not gpu"

claims: $(BIN)/lightwork
	$(BIN)/lightwork claims --all --save
	$(BIN)/python docs/generate.py

bench: $(BIN)/lightwork
	for file in benchmarks/[!_]*.py; do [ ! -f "$$file" ] || $(BIN)/python "$$file" || exit 1; done

docs: $(BIN)/lightwork
	$(BIN)/python docs/generate.py

site: $(BIN)/lightwork
	$(BIN)/mkdocs build --strict

format: $(BIN)/lightwork
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

static: $(BIN)/lightwork
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

install:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -c constraints.txt -e ".[all,dev]"

$(BIN)/lightwork:
	$(MAKE) install
