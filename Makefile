# Every target makes what it needs: `make demo` on a fresh clone is enough.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test check lint bench docs clean
.DELETE_ON_ERROR:

# torch first: another package asking for it without a version would pull another build.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

demo: $(READY)          ## GPT-FL on real handwriting: runs/demo/report/index.html
	$(BIN)/genfl demo

test: $(READY)          ## every test, slow ones included
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test        ## what must pass before a commit

bench: $(READY)         ## side-by-side measurements, printed as tables
	for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

docs: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) runs build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis
