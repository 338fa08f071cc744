PYTHON ?= python3
STACK ?= openmmlab

VENV_openmmlab = .venv
VENV_onedl = .venv-onedl
VENV = $(VENV_$(STACK))
BLOCK = .venv-torch$(TORCH)
# Two processes: each takes 2 GB, and most machines have two cores.
PYTEST = $(VENV)/bin/pytest -n 2 --dist worksteal

.PHONY: help env lock quickstart benchmark test test-slow test-block sanitize \
  upstream-tests lines lint format docs wheel zoo-check clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

env:  ## make .venv, pinned and tested versions of everything
	@$(PYTHON) requirements/install.py $(STACK)

lock:  ## pin the newest versions that requirements/stacks/*.in allow
	@$(PYTHON) requirements/install.py lock

quickstart: env  ## data, training, evaluation, a table and a picture
	.venv/bin/python dev/quickstart.py

benchmark: env  ## time and memory of PSA and other attention
	.venv/bin/python -m benchmarks

test: lint  ## lint and run the tests, except slow ones; STACK=onedl: forks
	$(PYTEST) -m 'not slow'

test-slow: env  ## run the slow tests
	$(PYTEST) -m slow

test-block:  ## test the block alone on another torch, TORCH=2.1.2
	$(PYTHON) -m venv $(BLOCK)
	$(BLOCK)/bin/pip install -q torch==$(TORCH) -r requirements/block.txt
	$(BLOCK)/bin/pip install -q --no-deps --force-reinstall .
	$(BLOCK)/bin/pytest tests/test_ops tests/test_psa.py tests/test_zoo.py

SANITIZERS = -fsanitize=address,undefined,float-cast-overflow
SANITIZED = build/sanitized
sanitize: env  ## test the C++ kernels under ASan and UBSan, built in build/sanitized
	CFLAGS="$(SANITIZERS) -g -fno-omit-frame-pointer" LDFLAGS="$(SANITIZERS)" \
	  $(VENV)/bin/python -W ignore setup.py -q build --build-base $(SANITIZED) \
	  --build-lib $(SANITIZED)/lib
	LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libstdc++.so)" \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	  PYTHONPATH=$(SANITIZED)/lib $(VENV)/bin/pytest -s -m 'not slow' \
	  -k 'cpp or tiles or caches or at_once' tests/test_ops

upstream-tests: env  ## run upstream's tests, without and with mmpsa
	.venv/bin/python dev/upstream_tests.py

lint: env  ## check style, format and types, as pre-commit does
	PATH=$(CURDIR)/$(VENV)/bin:$$PATH pre-commit run --all-files

LINES = mmpsa/plugins/*.py mmpsa/ops/[!t]*.py mmpsa/ops/triton*.py mmpsa/compare/*.py \
  mmpsa/**/*.py dev/*.py requirements/*.py benchmarks/*.py projects/study/*.py tests/**/*.py
lines:  ## count lines of code
	@$(PYTHON) dev/count_lines.py $(foreach pattern,$(LINES),'$(pattern)')

format: env  ## fix style and format
	.venv/bin/python -m ruff check --fix
	.venv/bin/python -m ruff format

docs:  ## build the site into site/, without warnings
	@$(PYTHON) requirements/install.py docs
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict

wheel: env  ## build the source archive and, from it, the wheel: dist/
	rm -rf dist
	$(VENV)/bin/python -W ignore setup.py -q sdist
	$(VENV)/bin/pip wheel -q --no-deps -w dist dist/*.tar.gz

zoo-check: env  ## evaluate the published checkpoints (needs data/)
	.venv/bin/python dev/zoo_check.py

clean:  ## remove .venv and everything built
	rm -rf .venv .venv-* build dist site mmpsa.egg-info mmpsa/.mim
