# Two commands do everything on a fresh machine: `make demo` and `make test`. Each sets up what it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN := $(VENV)/.installed
DEV := $(VENV)/.installed-dev

.PHONY: demo test check bench demands docs clean

demo: $(RUN)
	$(BIN)/konkyo demo --out out/demo

test: $(DEV)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

check: $(DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir site

bench: $(DEV)
	$(BIN)/python benchmarks/peers.py

demands: $(DEV)
	$(BIN)/python -m pytest tests/test_demands.py --demands=docs/demands.json; status=$$?; \
	$(BIN)/python docs/generate.py && exit $$status

docs: $(DEV)
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir site

clean:
	rm -rf $(VENV) site out

$(VENV)/.venv:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	touch $@

$(RUN): $(VENV)/.venv pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[transformers,train]"
	touch $@

$(DEV): $(RUN)
	$(BIN)/python -m pip install --quiet --group dev
	touch $@
