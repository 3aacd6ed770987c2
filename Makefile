# make demo     train a network on handwritten digits, on the best OpenCL device of this machine
# make test     run the tests; make test ARGS="-k softmax -x" passes arguments to pytest
# make check    formatting, lint, types and tests: what a change has to pass
# make setup    look again for an OpenCL device and CLBlast, after a driver was installed, say
# make clean    remove the environment and everything that was built
#
# Each first makes .venv and what it needs (.ci/setup). PYTHON=python3.12 names the interpreter for it.

PYTHON ?= python3
ARGS ?=
export PYTHON
# a linker for PoCL, where the machine has none (.ci/setup says more)
export PATH := $(PATH):$(CURDIR)/.venv/bin

.NOTPARALLEL:
.PHONY: help demo test check setup clean

help:
	@sed -n '/^$$/q; s/^# \{0,1\}//p' Makefile

demo: .venv/.ready
	.venv/bin/python -m clnn train digits

test: .venv/.ready-test
	.venv/bin/python -m pytest $(ARGS)

check: .venv/.ready-dev
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m ruff check .
	.venv/bin/python -m mypy clnn
	.venv/bin/python -m pytest $(ARGS)

setup:
	@.ci/setup

.venv/.ready: pyproject.toml .ci/setup
	@.ci/setup
	@touch $@

.venv/.ready-%: pyproject.toml .ci/setup
	@.ci/setup $*
	@touch $@

clean:
	rm -rf .venv .venvs build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
