# make demo     train a network on handwritten digits, on the best OpenCL device of this machine
# make test     run the tests, an hour or two on two cores; make test ARGS="-k softmax -x" passes arguments to pytest
# make test-fast  two minutes of them: the ones for every platform, which touch each kernel file, as far as they get
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
.PHONY: help demo test test-fast check setup clean

help:
	@sed -n '/^$$/q; s/^# \{0,1\}//p' Makefile

demo: .venv/.ready
	.venv/bin/python -m clnn train digits

test: .venv/.ready-test
	$(if $(ARGS),,@echo "All tests take an hour or two on two cores, most of it for compiling kernels; make test-fast takes two minutes")
	.venv/bin/python -m pytest $(ARGS)

test-fast: .venv/.ready-test
	.venv/bin/python -m pytest -m "platform and not slow" --minutes 2 $(ARGS)

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
