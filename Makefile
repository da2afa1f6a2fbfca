# make run    set up without torch, then predict the training step of the main job
# make test   set up everything, then lint, type-check and test
# make slow   the tests that simulate whole fleets or search at length
# make docs   the pages of docs/ as a site, in runs/docs
# make mutants  break lines that decide numbers, one at a time; a test must notice each
# make goldens  write down the metrics of every shipped run again
# make constraints  install the newest of everything and write down its versions
# make newest   test with the newest of everything; a scheduled check, see CONTRIBUTING.md
# make hour     an hour of hostile input: other seeds each time
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
NEWEST := $(VENV)-newest
# Two test workers: the suite is written for a two-core machine.
WORKERS ?= 2

# Of what a build needs too, which an option of pip install does not reach.
export PIP_CONSTRAINT = $(CURDIR)/constraints.txt

.PHONY: run test slow docs mutants goldens constraints newest hour lint clean

run: $(VENV)/.installed
	$(BIN)/dsv3sim run dualpipe_h800_2048

test: $(VENV)/.installed-everything lint
	$(BIN)/python -m pytest -q -n $(WORKERS) --benchmark-disable --durations 15

slow: $(VENV)/.installed-everything
	$(BIN)/python -m pytest -q -n $(WORKERS) -m slow

docs: $(VENV)/.installed-everything
	$(BIN)/mkdocs build --strict --config-file .mkdocs.yml

mutants: $(VENV)/.installed-everything
	$(BIN)/python tests/mutants.py

goldens: $(VENV)/.installed-everything
	$(BIN)/python tests/goldens.py

constraints: $(NEWEST)/.installed-newest
	{ sed -n '/^#/p' constraints.txt; \
	  $(NEWEST)/bin/pip freeze --all --exclude pip --exclude-editable | sed 's/+cpu$$//'; } > constraints.new
	mv constraints.new constraints.txt

newest: $(NEWEST)/.installed-newest
	$(NEWEST)/bin/python -m pytest -q -n $(WORKERS) --benchmark-disable

hour: $(VENV)/.installed-everything
	HOSTILE_SECONDS=3600 HOSTILE_SEED=$$(date +%s) \
	  $(BIN)/python -m pytest -q -m slow tests/test_hostile_input.py

lint: $(VENV)/.installed-everything
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	touch $@

# Each time anew: the newest of yesterday is not that of today.
.PHONY: $(NEWEST)/.installed-newest
$(NEWEST)/.installed-newest:
	rm -rf $(NEWEST)
	$(PYTHON) -m venv $(NEWEST)
	PIP_CONSTRAINT= $(NEWEST)/bin/pip install --quiet -e '.[reference,cluster,dev,docs]' hatchling

$(VENV)/.installed: pyproject.toml constraints.txt $(VENV)/.created
	$(BIN)/pip install --quiet -e .
	touch $@

$(VENV)/.installed-everything: pyproject.toml constraints.txt $(VENV)/.created
	$(BIN)/pip install --quiet -e '.[reference,cluster,dev,docs]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) $(NEWEST) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
