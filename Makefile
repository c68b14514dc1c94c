# Every target sets up what it needs: a machine with make, git and Python 3.11 or newer (with venv) is enough.

PYTHON_IN_VENV := .venv/bin/python
READY := .venv/ready

# pyright from the registry carries its checker; without this it would also ask the network for a newer one.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-full lint format bench docs tables build pins

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY) ## See Holdfast at work
	@$(PYTHON_IN_VENV) examples/installed_packages.py
	@echo
	@$(PYTHON_IN_VENV) examples/git_history_demo.py
	@echo
	@$(PYTHON_IN_VENV) examples/online_learner_demo.py

test: $(READY) ## Run the tests
	@$(PYTHON_IN_VENV) -m pytest -n auto --dist loadgroup

test-full: $(READY) ## Run the tests, every kill point and every fault included
	@$(PYTHON_IN_VENV) -m pytest -n auto --dist loadgroup --full

lint: $(READY) ## Check format, rules, types, layers, tables in docs and the tree (all, then fail)
	@status=0; \
	.venv/bin/ruff format --check . || status=1; \
	.venv/bin/ruff check . || status=1; \
	$(PYTHON_IN_VENV) -m pyright || status=1; \
	.venv/bin/lint-imports --no-logo || status=1; \
	$(PYTHON_IN_VENV) tools/tables.py || status=1; \
	$(PYTHON_IN_VENV) tools/check_tree.py || status=1; \
	exit $$status

format: $(READY) ## Format the code and mend what ruff can mend
	@.venv/bin/ruff format .
	@.venv/bin/ruff check --fix .

bench: $(READY) ## Measure, side by side, and print one table of ratios
	@$(PYTHON_IN_VENV) -m benchmarks

docs: $(READY) ## Build the documentation into build/docs
	@$(PYTHON_IN_VENV) -m sphinx -W --keep-going -q -b html docs build/docs
	@echo build/docs/index.html

tables: $(READY) ## Write the generated tables in docs anew
	@$(PYTHON_IN_VENV) tools/tables.py --write

build: $(READY) ## Build wheel and sdist into dist
	@$(PYTHON_IN_VENV) -m build --no-isolation --outdir dist

pins: ## Pin the newest versions of what a checkout needs (see CONTRIBUTING.md)
	@tools/pin

$(READY): requirements/dev.txt pyproject.toml tools/set_up
	@tools/set_up
	@touch $@
