# Everything that a change needs, from a clean clone: `make` prints the targets.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
VENV := .venv
IN := $(VENV)/bin/
# one stamp for each state of the lock and of the package's metadata
INSTALLED := $(VENV)/.installed-$(shell cat requirements-dev.txt pyproject.toml 2>/dev/null | sha256sum | cut -c1-16)

.PHONY: help
help: ## Print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: $(INSTALLED) ## Four databases behind a bastion become reachable in a real cluster; then a key that is not accepted yet
	$(IN)python -m tests.support.demo up

.PHONY: demo-down
demo-down: $(INSTALLED) ## Remove what the demo started
	$(IN)python -m tests.support.demo down

.PHONY: test
test: lint forget-pages test-unit test-forwarder test-cluster ## Everything: lint, unit, forwarder and cluster tests
	@# of all tests together: each runs some of the commands that the pages give
	$(if $(ARGS)$(filter existing,$(CLUSTER)),,$(IN)python -m tests.support.pages)

.PHONY: forget-pages
forget-pages:
	@rm -rf build/pages

.PHONY: test-unit
test-unit: $(INSTALLED) ## Decisions, builders, schema, chart: no server needed
	@$(IN)python -m tests.support.prepare unit
	$(IN)pytest tests/unit -n 2 $(ARGS)

.PHONY: test-forwarder
test-forwarder: $(INSTALLED) ## The forwarder against a real sshd and real databases, no Kubernetes
	@$(IN)python -m tests.support.prepare forwarder
	$(IN)pytest tests/forwarder -n 6 --dist worksteal $(ARGS)

.PHONY: test-cluster
test-cluster: $(INSTALLED) ## The whole way on a real Kubernetes (CLUSTER=kind, local or existing)
	@$(IN)python -m tests.support.prepare cluster
	@rm -rf build/rights
	$(IN)pytest tests/cluster $(if $(filter existing,$(CLUSTER)),,-n 3 --dist loadfile --no-loadscope-reorder) $(ARGS)
	@# of all tests together: some of them use few of the operator's rights
	$(if $(ARGS)$(filter existing,$(CLUSTER)),,$(IN)python -m tests.support.rights)

.PHONY: soak
soak: $(INSTALLED) ## Ten GiB each way, byte by byte (GIB=n); 5,000 random lives of a connection; a week of probes; a day that passes fast (HOURS=n)
	DBTUNNEL_EXAMPLES=5000 $(IN)pytest tests/unit/test_connection_machine.py --timeout 3600
	@$(IN)python -m tests.support.prepare forwarder
	DBTUNNEL_IDENTITY_MEBIBYTES=$$(( $(or $(GIB),10) * 1024 )) \
	  $(IN)pytest tests/forwarder/test_packets.py -k arrive_as_they_were_sent -s --timeout 3600 $(ARGS)
	DBTUNNEL_PROBES_A_DAY=1440 $(IN)pytest tests/forwarder/test_probes_harmless.py --timeout 3600
	DBTUNNEL_SOAK_HOURS=$(or $(HOURS),24) $(IN)pytest tests/forwarder/test_soak.py -s --timeout 36000 $(ARGS)

.PHONY: bench
bench: $(INSTALLED) ## Speed and memory beside `ssh -N -L` (ROUNDS=n, ROWS=name,name, QUICK=1)
	@$(IN)python -m bench run $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(ROWS),--rows $(ROWS)) $(if $(QUICK),--quick) $(ARGS)

.PHONY: profile
profile: $(INSTALLED) ## Where the time and the memory of the benchmark's rows go (ROWS=name,name)
	@$(IN)python -m bench profile $(if $(ROWS),--rows $(ROWS)) $(ARGS)

.PHONY: diagnosis
diagnosis: $(INSTALLED) ## How soon after a fault its condition is told, written into docs/diagnosis.md (RUNS=n)
	@$(IN)python -m bench.diagnosis --into docs/diagnosis.md $(if $(RUNS),--runs $(RUNS)) $(ARGS)

.PHONY: reasons
reasons: $(INSTALLED) ## Each reason, the tests that bring it about, its message in full and the exit code of `check`
	@$(IN)python -m tests.support.prepare cluster >&2
	@$(IN)python -m tests.support.produced --run $(ARGS)

.PHONY: lint
lint: $(INSTALLED) ## Format, style, types, layers
	$(IN)ruff format --check .
	$(IN)ruff check .
	$(IN)mypy
	$(IN)mypy tests bench
	$(IN)lint-imports

.PHONY: generate
generate: $(INSTALLED) ## Write the CRD and the reference pages from the code
	$(IN)python -m tests.support.generated

.PHONY: pictures
pictures: $(INSTALLED) ## Have the tests record the terminals that the pages show, and draw them
	DBTUNNEL_PICTURES=1 $(IN)pytest tests/forwarder/test_check_pages.py tests/cluster/test_readme.py

.PHONY: lock
lock: $(INSTALLED) ## Resolve the dependencies anew and pin them with their hashes
	$(IN)python -m tests.support.lock

.PHONY: manifests
manifests: $(INSTALLED) ## Render the chart as build/install.yaml for kubectl alone (REPOSITORY=the image's)
	@$(IN)python -m tests.support.release manifests $(if $(REPOSITORY),--repository '$(REPOSITORY)')

.PHONY: release-check
release-check: $(INSTALLED) ## Whether a tag, the package, the chart and the changelog are of one version (TAG=v0.1.0)
	@$(IN)python -m tests.support.release check '$(TAG)'

.PHONY: release-files
release-files: $(INSTALLED) ## The chart, install.yaml, a bill of materials and checksums in build/release (REPOSITORY=the image's)
	@$(IN)python -m tests.support.release files --repository '$(REPOSITORY)'

.PHONY: image
image: $(INSTALLED) ## Build the container image with docker, or with buildah where there is no Docker engine
	$(IN)python -m tests.support.images build

.PHONY: cluster-up
cluster-up: $(INSTALLED) ## Start a Kubernetes cluster for trying things out
	$(IN)python -m tests.support.cluster up

.PHONY: cluster-down
cluster-down: $(INSTALLED) ## Stop that cluster
	$(IN)python -m tests.support.cluster down

.PHONY: clean
clean: ## Remove what was built in this tree; caches outside it stay
	rm -rf $(VENV) build dist operator/*.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): requirements-dev.txt pyproject.toml
	@bash tests/support/install.sh "$(PYTHON)" "$(VENV)"
	@rm -f $(VENV)/.installed-*
	@touch $@
