# make demo    install, convert the bundled checkpoint to 4-bit MLX, generate from it
# make test    install and run the tests, but for the slow ones (no torch needed)
# make test-all  with the slow ones: terminals, processes, wheels, documents, benchmarks
# make parity  install torch and transformers too, and compare with the reference live
# make notebooks  install and execute the notebooks, on the bundled demo
# make docs    write what is derived: docs/cli.md, README.md's table of Macs
# make lint    formatting and lint          make types   type check
# make clean   remove everything these made
#
# Variables: PYTHON=python3.12 picks the interpreter, VENV=dir the virtual environment, PYTEST_ARGS adds
# to pytest's, TORCH what pip installs as torch. On Linux the default torch may be a build for CUDA, which
# is large; give pip an index of CPU builds with TORCH="torch==2.13.0 --index-url URL".

PYTHON ?= python3
VENV ?= .venv
TORCH := $(or $(TORCH),torch==2.13.0)
PYTEST_ARGS ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
DEMO := build/demo-4bit
DEMO_PROMPTS := 'What is 345 + 78?' 'JSON for Paris and Rome' 'What is the capital of Norway?' \
  'Spell "planet" backwards.' 'Count to 37.'
PACKAGING := pyproject.toml setup.py

.PHONY: demo test test-all parity notebooks docs lint types clean
.NOTPARALLEL: # pip does not like a second pip in the same environment
.DELETE_ON_ERROR:

demo: $(DEMO)/config.json
	@for prompt in $(DEMO_PROMPTS); do \
	  printf "\n%s '%s'\n" '$$ mlx_dg generate --model $(DEMO) --thinking --seed 0 --stats' "$$prompt"; \
	  $(BIN)/mlx_dg generate --model $(DEMO) --thinking --seed 0 --stats "$$prompt" 2>&1 || exit 1; \
	done

test: $(VENV)/.test $(VENV)/.trl
	$(BIN)/python -m pytest -n auto --dist loadgroup -m "not slow" --ignore=tests/parity $(PYTEST_ARGS)

test-all: $(VENV)/.test $(VENV)/.trl
	$(BIN)/python -m pytest -n auto --dist loadgroup --ignore=tests/parity $(PYTEST_ARGS)

parity: $(VENV)/.parity
	$(BIN)/python -m pytest -n auto --dist loadgroup tests/parity $(PYTEST_ARGS)

# One after the other, because each takes all cores that there are.
notebooks: $(VENV)/.test
	$(BIN)/python -m pytest --nbmake --nbmake-timeout=300 notebooks $(PYTEST_ARGS)

docs: $(VENV)/.package
	$(BIN)/python docs/generate.py

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python tests/support/prose.py

types: $(VENV)/.dev
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

# --- what is installed, remembered by stamp files ---------------------------------------------------------

$(VENV)/.venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "make: $(PYTHON) is `$(PYTHON) --version 2>&1`, but Python 3.10 or newer is needed;" \
	       "name one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.package: $(VENV)/.venv $(PACKAGING)
	@echo "Installing into $(VENV), which takes a minute or two the first time"
	@$(PIP) --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.package
	@$(PIP) --editable '.[test]'
	@touch $@

# Only for the chat template that Google released, which the tests compare with: a data file in this package,
# whose code is not run. So its dependencies are left out, and so is its lower bound of Python.
$(VENV)/.trl: $(VENV)/.venv
	@$(PIP) --no-deps --no-compile --ignore-requires-python trl==1.16.0
	@touch $@

$(VENV)/.dev: $(VENV)/.package
	@$(PIP) --editable '.[dev]'
	@touch $@

$(VENV)/.parity: $(VENV)/.package
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: the reference, transformers >= 5.23, needs Python 3.11 or newer, and $(VENV) has" \
	       "`$(BIN)/python --version`; run: make clean parity PYTHON=python3.12" >&2; exit 1; }
	@echo "Installing $(TORCH) and transformers into $(VENV)"
	@$(PIP) $(TORCH)
	@$(PIP) --editable '.[parity]'
	@touch $@

$(DEMO)/config.json: $(VENV)/.package $(wildcard mlx_diffusiongemma/demo/checkpoint/* convert/*.py)
	@rm -rf $(DEMO)
	$(BIN)/mlx_dg convert demo --mlx-path $(DEMO)
	@touch $@
