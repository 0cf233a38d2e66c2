# Everything a clone needs. `make demo` and `make test` work in a fresh clone: they create the
# virtual environment and install the locked requirements and the package first.
#
#   make test PYTHON=python3.12 VENV=.venv-3.12     another Python, in an environment of its own
#   make test ARGS="tests/linalg -x"                more arguments for the program that is run

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
UV ?= uv
ARGS ?=
# The peers need PyTorch, so the benchmarks have an environment of their own. TORCH may add an index:
#   make bench TORCH="torch==2.13.0 --index-url INDEX-OF-CPU-BUILDS"
BENCH ?= .venv-bench
TORCH ?= torch==2.13.0
SHORT := accuracy growth transforms side_by_side cold_start

BIN := $(VENV)/bin
LOCK := requirements/dev.txt
# worksteal keeps the tests of a file on one worker as far as it can, and with them the programs
# that they compile.
PARALLEL := -n $(JOBS) --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo experiments test test-slow lint format docs test-site bench bench-full install \
  dist test-dist release lock clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

demo: install ## train, measure and report: runs/quickstart/cpu (about 3 minutes)
	$(BIN)/python -m experiments quickstart $(ARGS)

experiments: install ## run and judge all experiments: runs/gallery.html (minutes; goes on where it stopped)
	$(BIN)/python -m experiments report --names | xargs -P $(JOBS) -I NAME \
	  env OMP_NUM_THREADS=1 $(BIN)/python -m experiments NAME --quiet $(ARGS)
	$(BIN)/python -m experiments report

test: install ## the fast tests, the doctests, and the examples of README and docs
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

# With optimised programs; the fast tests run others, see tests/conftest.py.
test-slow: install ## the statistical and size sweeps
	XLA_FLAGS= $(BIN)/python -m pytest $(PARALLEL) -m slow --timeout 1800 $(ARGS)

lint: install ## style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python

format: install ## let ruff fix what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install ## build the documentation, warnings are errors
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

test-site: docs ## the documentation in a browser (needs chromium)
	$(BIN)/python -m pytest -m slow tests/docs $(ARGS)

bench: $(BENCH)/.installed ## the benchmarks beside the peers, short form
	$(BENCH)/bin/python -m benchmarks --short --output benchmarks/results $(SHORT) $(ARGS)
	$(BENCH)/bin/python -m benchmarks render

bench-full: $(BENCH)/.installed ## the benchmarks beside the peers, all sizes (hours; goes on where it stopped)
	$(BENCH)/bin/python -m benchmarks --output benchmarks/results $(SHORT) costs $(ARGS)
	$(BENCH)/bin/python -m benchmarks render

install: $(VENV)/.installed ## the virtual environment, if it is missing or out of date

# Two stamps, so that an edit of pyproject.toml does not install the requirements again.
$(VENV)/.locked: $(LOCK)
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit( \
	  "flatjax needs Python 3.11 or newer; $(PYTHON) is " + sys.version.split()[0] + \
	  ". Name another one: make PYTHON=python3.12")'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@echo "Installing the locked requirements into $(VENV): about two minutes the first time."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(LOCK)
	@touch $@

$(VENV)/.installed: $(VENV)/.locked pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --no-deps --no-build-isolation --editable .
	@touch $@

# No dependencies: the lock has them all, and those of torch come with torch.
$(BENCH)/.locked: requirements/bench.txt
	@$(BENCH)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes \
	  --no-deps -r requirements/bench.txt
	@touch $@

$(BENCH)/.installed: $(BENCH)/.locked pyproject.toml
	$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check \
	  --no-deps --no-build-isolation --editable .
	@touch $@

# `build` makes the wheel from the sdist; that of the repository itself must be the same, byte by byte.
dist: install ## the sdist and the wheel: dist/
	rm -rf dist
	$(BIN)/python -m build --no-isolation .
	$(BIN)/python -m build --no-isolation --wheel --outdir dist/tree . >/dev/null
	cmp dist/tree/*.whl dist/*.whl
	rm -r dist/tree

test-dist: dist ## install the wheel into a new environment outside the clone, and try it there
	.ci/test-dist $(PYTHON)

release: dist ## a dry run of a release: all but the upload
	.ci/release

lock: ## resolve the requirements again (needs uv; UPGRADE=1 takes the newest versions)
	$(UV) pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --custom-compile-command "make lock" $(if $(UPGRADE),--upgrade) \
	  --extra experiments --extra plots \
	  --group test --group lint --group docs --group build -o $(LOCK)
	$(UV) pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --custom-compile-command "make lock" $(if $(UPGRADE),--upgrade) \
	  --no-emit-package torch --no-emit-package torchvision \
	  --extra benchmarks --group test --group build -o requirements/bench.txt

clean: ## remove what was built (the virtual environments and runs stay)
	rm -rf build dist docs/_build docs/api .pytest_cache .ruff_cache .hypothesis
	find flatjax tests experiments benchmarks docs -name __pycache__ -type d -exec rm -rf {} +
