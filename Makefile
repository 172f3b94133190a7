# Every target makes what it needs: `make demo` on a fresh clone is enough.
PYTHON   ?= python3
VERSIONS ?= 3.12 3.13
VENV     := .venv
BIN      := $(VENV)/bin
READY    := $(VENV)/.ready
# Each worker takes neighbouring tests, so what the tests of a file share is seldom built twice.
PYTEST   := python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal
FAST     := -m "not slow"

.PHONY: demo test test-fast test-lowest test-versions check lint bench oracle docs clean
.DELETE_ON_ERROR:

# Python keeps what it compiles, tests too: without that, half of what a worker does before its first test is to
# compile all tests.
unexport PYTHONDONTWRITEBYTECODE

# $(call install,FOLDER,PYTHON,CONSTRAINTS): an environment with all that the tests need.
# torch first: another package asking for it without a version would pull another build.
define install
$(2) -m venv $(1)
$(1)/bin/python -m pip install --quiet --constraint $(3) torch
$(1)/bin/python -m pip install --quiet --constraint $(3) --editable ".[dev]"
@touch $(1)/.ready
endef

$(READY): pyproject.toml constraints.txt
	$(call install,$(VENV),$(PYTHON),constraints.txt)

.venv-lowest/.ready: pyproject.toml constraints-lowest.txt
	$(call install,.venv-lowest,python3.11,constraints-lowest.txt)

.venv-3.%/.ready: pyproject.toml constraints.txt
	$(call install,.venv-3.$*,python3.$*,constraints.txt)

demo: $(READY)          ## GPT-FL on real handwriting: runs/demo/report/index.html
	$(BIN)/genfl demo

test: $(READY)          ## every test, slow ones included
	$(BIN)/$(PYTEST)

test-fast: $(READY)     ## the fast half of the tests: for the inner loop
	$(BIN)/$(PYTEST) $(FAST)

test-lowest: .venv-lowest/.ready   ## the fast tests on the lowest versions of all dependencies
	.venv-lowest/bin/$(PYTEST) $(FAST)

test-versions: $(VERSIONS:%=.venv-%/.ready)   ## the fast tests on other versions of Python
	for version in $(VERSIONS); do .venv-$$version/bin/$(PYTEST) $(FAST) || exit 1; done

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test        ## what must pass before a commit

bench: $(READY)         ## side-by-side measurements, printed as tables
	for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

ORACLE := .venv-oracle

$(ORACLE)/.ready:
	$(PYTHON) -m venv $(ORACLE)
	$(ORACLE)/bin/python -m pip install --quiet jax-privacy==2.0.0
	@touch $@

oracle: $(ORACLE)/.ready   ## the pinned figures of jax-privacy, computed again in an environment of its own
	$(ORACLE)/bin/python tools/oracle.py

docs: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) .venv-* runs build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis
