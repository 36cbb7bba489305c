# The two commands a newcomer needs are `make figures` and `make test`; each sets up .venv by itself.
PYTHON  ?= python3
PROFILE ?= desk
VENV    := .venv
RUN     := $(VENV)/bin/python
STAMP   := $(VENV)/installed
INSTALL := $(RUN) -m pip install -q --disable-pip-version-check

.PHONY: figures seeds test test-older-cpus lint bench docs audit clean
.DEFAULT_GOAL := figures

figures: $(STAMP)  ## every figure, in figures/$(PROFILE); RETRAIN=1 trains everything from nothing first, FRESH=1 measures it anew; ONLY=fig03
	$(RUN) -m analysis.figures --profile $(PROFILE) $(if $(ONLY),--only $(ONLY)) $(if $(RETRAIN),--retrain) $(if $(FRESH),--fresh) $(if $(DEVICE),--device $(DEVICE))

seeds: $(STAMP)  ## every run, and all but the teachers with further training seeds, measured into figures/$(PROFILE)/seeds.csv; RUNS=gdd,gdd-i@1 RETRAIN=1 DEVICE=cuda
	$(RUN) -m analysis.figures --profile $(PROFILE) --seeds $(if $(RUNS),--runs $(RUNS)) $(if $(RETRAIN),--retrain) \
		$(if $(DEVICE),--device $(DEVICE))

test: $(STAMP)
	$(RUN) -m pytest -n auto --maxprocesses 4 --dist worksteal

# the same equalities on the code paths of older processors
NUMERICS := tests/test_losses.py tests/test_trainer.py tests/test_engine.py tests/test_discriminator.py \
	tests/test_sampling.py tests/test_unet.py tests/test_trace.py

test-older-cpus: $(STAMP)
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 $(RUN) -m pytest -n auto --maxprocesses 4 $(NUMERICS)
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(RUN) -m pytest -n auto --maxprocesses 4 $(NUMERICS)

lint: $(STAMP)
	$(RUN) -m ruff check .
	$(RUN) -m yapf --diff --recursive gdd analysis examples tests benchmarks docs
	$(RUN) -m mypy
	$(VENV)/bin/nbstripout --verify notebooks/*.ipynb

bench: $(STAMP)  ## ours against named peers, as ratios in one run: benchmarks/results.csv, figures/bench, README's table; ONLY="sampling data" writes nothing
	$(RUN) -m benchmarks $(ONLY)

docs: $(STAMP)  ## the pages of docs/ as a site, in site/, without a network
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build

audit: $(STAMP)  ## known holes in what requirements.lock pins; without a network it only warns
	@found=$$($(RUN) -m pip_audit --disable-pip --require-hashes -r requirements.lock 2>&1); code=$$?; \
	told=$$(echo "$$found" | grep -v "could not be audited" | cut -c 1-200); \
	skipped=$$(echo "$$found" | grep -c "could not be audited"); \
	case "$$code $$found" in \
	0*) echo "$$told" | head -n 1; \
		test $$skipped = 0 || echo "warning: of $$skipped packages nobody could be asked" ;; \
	*"known vulnerabilit"*) echo "$$told"; exit 1 ;; \
	*) echo "$$told" | tail -n 1; echo "warning: nothing was audited" ;; \
	esac

clean:  ## everything but trained runs
	rm -rf $(VENV) figures/smoke build site *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .benchmarks
	find . -name __pycache__ -prune -exec rm -rf {} +

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) -V). Name another: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --require-hashes --only-binary :all: -r requirements.lock
	PYTHONWARNINGS=ignore $(INSTALL) --no-build-isolation --no-deps -e .
	@touch $@
