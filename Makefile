# The two commands a newcomer needs are `make figures` and `make test`; each sets up .venv by itself.
PYTHON  ?= python3
PROFILE ?= desk
VENV    := .venv
RUN     := $(VENV)/bin/python
STAMP   := $(VENV)/installed

.PHONY: figures seeds test lint bench clean
.DEFAULT_GOAL := figures

figures: $(STAMP)  ## every figure, in figures/$(PROFILE); RETRAIN=1 trains everything from nothing first; ONLY=fig03
	$(RUN) -m analysis.figures --profile $(PROFILE) $(if $(ONLY),--only $(ONLY)) $(if $(RETRAIN),--retrain)

seeds: $(STAMP)  ## GDD and GDD-I with two more training seeds, beside the shipped ones
	$(RUN) -m analysis.experiments --profile $(PROFILE) --seeds

test: $(STAMP)
	$(RUN) -m pytest -n auto --maxprocesses 4 --dist worksteal

lint: $(STAMP)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(VENV)/bin/nbstripout --verify notebooks/*.ipynb

bench: $(STAMP)  ## ours against named peers, as ratios in one run
	$(RUN) -m pytest benchmarks -o testpaths=benchmarks -s

clean:  ## everything but trained runs
	rm -rf $(VENV) figures/smoke build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .benchmarks
	find . -name __pycache__ -prune -exec rm -rf {} +

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) -V). Name another: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q --disable-pip-version-check -r requirements.lock
	$(VENV)/bin/pip install -q --disable-pip-version-check --no-deps -e .
	@touch $@
