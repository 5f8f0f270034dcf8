# `make help` lists the targets. uv is the only requirement; where it is missing and Python is not, it is
# installed into .uv/ of this folder.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

UV ?= $(or $(shell command -v uv 2>/dev/null),.uv/bin/uv)
RUN := $(UV) run --locked
export UV_NO_PROGRESS ?= 1
# Images for CI often forbid it; then each of the hundreds of processes that tests start compiles all that it imports.
export PYTHONDONTWRITEBYTECODE :=
# Three lanes of tests with simulated nodes and one of tests with clusters of their own, which mostly wait; one for the rest.
WORKERS ?= 5

.PHONY: help
help: ## List the targets.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  \033[1m%-12s\033[0m %s\n", $$1, $$2}'

.uv/bin/uv:
	python3 -m venv .uv && .uv/bin/python -m pip install --quiet 'uv>=0.13,<0.14'

.PHONY: sync
sync: $(filter .uv/bin/uv,$(UV)) ## Install the locked dependencies into .venv/.
	$(UV) sync --locked --quiet

.PHONY: demo
demo: sync ## Local control plane, operator, a real model and three simulated ones, scaling, costs. KEEP=1 leaves it running.
	$(RUN) python -m flotilla_devcluster.demo $(if $(KEEP),--keep)

.PHONY: test
test: lint ## Everything that CI runs. WORKERS=1 for one test at a time.
	$(RUN) pytest -n $(WORKERS)

.PHONY: test-slow
test-slow: sync ## A real vLLM on the CPU under the operator; installs about 6 GB into ~/.cache/flotilla once.
	$(RUN) pytest -m slow tests/slow

.PHONY: test-trainer
test-trainer: $(filter .uv/bin/uv,$(UV)) ## The trainer in its own environment (270 MB): types, training on the CPU, llama.cpp's answers.
	cd trainer && $(UV) run --locked mypy && $(UV) run --locked pytest

.PHONY: lint
lint: sync ## Format, lint, types, layers, generated files.
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) mypy
	$(RUN) lint-imports
	$(RUN) python -m flotilla.api.crd --check
	$(RUN) python -m hack.generate --check

.PHONY: generate
generate: sync ## Rewrite the generated files: crds/, the chart's, manifests/base/rbac.yaml, manifests/monitoring/.
	$(RUN) python -m flotilla.api.crd
	$(RUN) python -m hack.generate

.PHONY: manifests
manifests: generate ## Render the chart into manifests/base and the overlays; a test compares them.
	$(RUN) python -m hack.manifests

.PHONY: docs
docs: sync ## The documentation as a site, in site/.
	NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --strict --quiet

.PHONY: bench
bench: sync ## Benchmarks: operator and gateway beside others, on the real control plane; prints tables.
	$(RUN) python -m benchmarks.reconcile
	$(RUN) python benchmarks/scrape.py
	$(RUN) python -m benchmarks.scaling
	$(RUN) python benchmarks/reaction.py
	$(RUN) python benchmarks/cold_start.py
	$(RUN) python benchmarks/cost_metrics.py
	$(RUN) python -m benchmarks.gateway
	$(RUN) python -m benchmarks.speed

.PHONY: clean
clean: ## Remove caches of this folder (not the control plane's programs).
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache dist
