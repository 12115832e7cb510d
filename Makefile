# Each target makes .venv by itself the first time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := $(CURDIR)/demo
export OMP_NUM_THREADS := 1

.PHONY: demo test lab docs bench clean
demo: $(VENV)/.ready   ## the chapter on linear mode connectivity at scale quick, from nothing
	rm -rf $(DEMO) && mkdir -p $(DEMO)/data
	LTH_NB_SCALE=quick LTH_NB_DATA=$(DEMO)/data LTH_NB_RESULTS=$(DEMO)/results LTH_NB_PUBLISHED=none $(BIN)/lth-nb run linear_mode_connectivity
	LTH_NB_SCALE=quick LTH_NB_DATA=$(DEMO)/data LTH_NB_RESULTS=$(DEMO)/results LTH_NB_PUBLISHED=none $(BIN)/python -m lth_nb.site demo nbs/02_linear_mode_connectivity.ipynb $(DEMO)

test: $(VENV)/.ready   ## everything that can fail
	$(BIN)/python -m pytest

lab: $(VENV)/.ready   ## read and run the chapters
	$(BIN)/jupyter lab nbs

docs: $(VENV)/.ready   ## the site, into _docs/
	$(BIN)/python -m lth_nb.site docs

bench: $(VENV)/.ready   ## speed, one core
	$(BIN)/python benchmarks/speed.py

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev,cluster,s3,table]'
	touch $@

clean:
	rm -rf $(DEMO) _docs _proc
