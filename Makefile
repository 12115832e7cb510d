# Each target makes .venv by itself the first time, and again when pyproject.toml says something else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SETTINGS := LTH_NB_SCALE=quick LTH_NB_DATA="$(CURDIR)/demo/data" LTH_NB_RESULTS="$(CURDIR)/demo/results" LTH_NB_PUBLISHED=none
export OMP_NUM_THREADS := 1

.PHONY: demo test lab docs bench bench-gpu clean
demo: $(VENV)/.ready   ## the chapter on linear mode connectivity at scale quick, from nothing
	rm -rf demo && mkdir -p demo/data
	$(SETTINGS) $(BIN)/lth-nb run linear_mode_connectivity
	$(SETTINGS) $(BIN)/python -m lth_nb.site demo nbs/02_linear_mode_connectivity.ipynb demo

test: $(VENV)/.ready   ## everything that can fail
	$(BIN)/python -m pytest -q

lab: $(VENV)/.ready   ## read and run the chapters
	$(BIN)/jupyter lab nbs

docs: $(VENV)/.ready   ## the site, into _docs/
	$(BIN)/python -m lth_nb.site docs

bench: $(VENV)/.ready   ## speed on one core of this machine
	$(BIN)/python benchmarks/engine.py

bench-gpu: $(VENV)/.ready   ## the same on a CUDA device, and the tests that need one
	$(BIN)/python -m pytest -q -m gpu
	$(BIN)/python benchmarks/engine.py --device cuda

# The stamp is a copy of what was installed: nbdev-export touches pyproject.toml without changing it
$(VENV)/.ready: pyproject.toml
	@cmp -s pyproject.toml $@ && touch $@ || $(MAKE) --no-print-directory install
.PHONY: install
install:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	@echo "Installing into $(VENV), some minutes the first time ..."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,cluster,s3,table]'
	cp pyproject.toml $(VENV)/.ready

clean:
	rm -rf demo _docs _proc
