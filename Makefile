# make run    set up without torch, then predict the training step of the main job
# make test   set up everything, then lint, type-check and test
# make slow   the tests that simulate whole fleets or search at length
# make mutants  break lines that decide numbers, one at a time; a test must notice each
# make goldens  write down the metrics of every shipped run again
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Two test workers: the suite is written for a two-core machine.
WORKERS ?= 2

.PHONY: run test slow mutants goldens lint clean

run: $(VENV)/.installed
	$(BIN)/dsv3sim run dualpipe_h800_2048

test: $(VENV)/.installed-everything lint
	$(BIN)/python -m pytest -q -n $(WORKERS) --benchmark-disable

slow: $(VENV)/.installed-everything
	$(BIN)/python -m pytest -q -n $(WORKERS) -m slow

mutants: $(VENV)/.installed-everything
	$(BIN)/python tests/mutants.py

goldens: $(VENV)/.installed-everything
	$(BIN)/python tests/goldens.py

lint: $(VENV)/.installed-everything
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.installed: pyproject.toml $(VENV)/.created
	$(BIN)/pip install --quiet -e .
	touch $@

$(VENV)/.installed-everything: pyproject.toml constraints.txt $(VENV)/.created
	$(BIN)/pip install --quiet -c constraints.txt -e '.[reference,dev]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
