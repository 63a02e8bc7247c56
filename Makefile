# Two commands do all of their own set-up: `make image` and `make test`. `make help` lists the rest.
SHELL := /bin/bash
.DEFAULT_GOAL := help

IMAGE ?= cloud_base
ARGS ?=

# The checkout's own tools first, whatever the caller's shell has on PATH; last the folders of mke2fs and its kin.
export PATH := $(CURDIR)/.venv/bin:$(PATH):/usr/sbin:/sbin
# Named, because Ansible ignores an ansible.cfg that it finds in a folder others may write to.
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
# Ansible wants UTF-8; a fresh container has no locale set.
export LC_ALL := C.UTF-8

PYTEST := .venv/bin/python -m pytest -v
FAST := not slow_matrix

.PHONY: help
help: ## Show this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24
	@echo
	@echo '  IMAGE=cloud_base    the image definition: a name in playbooks/images, or a path'
	@echo '  ARGS="..."          more arguments for ansible-playbook (image) or pytest (check, test, test-all)'
	@echo '  SETUP_BACKPORTS=1, SETUP_PACKER=bookworm, SETUP_PACKAGES=skip: see scripts/setup'

.PHONY: image
image: ## Build, boot and prove an image (IMAGE=cloud_base) into output/
	@scripts/setup runtime
	.venv/bin/ansible-playbook playbooks/build-image.yml -e image=$(IMAGE) $(ARGS)

.PHONY: setup
setup: ## Install what builds and tests need, and nothing that is there already
	@scripts/setup tests

.PHONY: check
check: setup ## Linters and unit tests (under 3 minutes)
	$(PYTEST) -m "$(FAST)" tests/unit tests/collection/test_lint.py $(ARGS)

.PHONY: test
test: setup ## Every test of the project but the slow matrix
	MOLECULE_RESTART=no $(PYTEST) -m "$(FAST)" tests $(ARGS)

.PHONY: test-all
test-all: setup ## Every test, the slow matrix too
	$(PYTEST) tests $(ARGS)

.PHONY: bench
bench: setup ## Measure: JSON with ratios against what one would do instead
	PYTHONPATH=.venv/collections .venv/bin/python -m tests.bench $(ARGS)

.PHONY: bench-net
bench-net: setup ## Measure: all checks of a network together, against the slowest of them
	PYTHONPATH=.venv/collections .venv/bin/python -m tests.bench.net_validate

.PHONY: bench-hardening
bench-hardening: setup ## Measure the role hardening in a machine with Lynis and OpenSCAP; writes docs/hardening.md
	PYTHONPATH=.venv/collections .venv/bin/python -m tests.bench.hardening $(ARGS)

.PHONY: bench-aws
bench-aws: setup ## Measure copies and imports of AMIs in a simulated cloud, against the AWS CLI and Ansible's own module
	PYTHONPATH=.venv/collections .venv/bin/python -m tests.bench.aws

.PHONY: bench-roles
bench-roles: setup ## Measure the roles in a machine against one shell script, and the first boot of the image
	PYTHONPATH=.venv/collections .venv/bin/python -m tests.bench.roles $(ARGS)

.PHONY: readme
readme: setup ## Write the variable tables of the role READMEs anew
	.venv/bin/python scripts/role_readme.py

.PHONY: clean
clean: ## Remove what the project made in this checkout: .venv, caches, output (asks nothing)
	rm -rf .venv .cache .ansible .pytest_cache .ruff_cache output goldsmith-images-*.tar.gz
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
