# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test check format lint imports types unit wheel bench clean

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "umpack needs Python 3.11 or newer (PYTHON=python3.x make ...)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev,fast,plot]'
	@touch $@

demo: $(STAMP)
	$(BIN)/umpack demo

test: $(STAMP)
	$(BIN)/python -m pytest -q -n auto --dist loadgroup tests

check: format lint imports types test wheel

format: $(STAMP)
	$(BIN)/ruff format --check .

lint: $(STAMP)
	$(BIN)/ruff check .

imports: $(STAMP)
	$(BIN)/lint-imports

types: $(STAMP)
	$(BIN)/mypy umpack drivers simulators tests

unit: $(STAMP)
	$(BIN)/python -m pytest -q -n auto tests/unit tests/contract -m 'not pbx'

wheel: $(STAMP)
	$(BIN)/python -m build --quiet --wheel --outdir dist .
	$(BIN)/python -m tests.packaging.wheel dist

bench: $(STAMP)
	$(BIN)/python -m tests.bench

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
