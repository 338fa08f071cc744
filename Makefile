PYTHON ?= python3.11

.PHONY: help env quickstart benchmark test upstream-tests lint \
  format zoo-check clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

env:  ## make .venv, pinned and tested versions of everything
	@command -v $(PYTHON) >/dev/null || \
	  { echo 'make env: no $(PYTHON); name a Python 3.11 with `make PYTHON=...`' >&2; exit 1; }
	@$(PYTHON) requirements/install.py

quickstart: env  ## data, training, evaluation, a table and a picture
	.venv/bin/python tools/quickstart.py

benchmark: env  ## time and memory of PSA, SE and others
	.venv/bin/python tools/benchmark.py

test: lint  ## lint and run the tests
	.venv/bin/python -m pytest

upstream-tests: env  ## run upstream's tests, without and with mmpsa
	.venv/bin/python tools/upstream_tests.py

lint: env  ## check style and format
	.venv/bin/python -m ruff check --no-cache
	.venv/bin/python -m ruff format --check

format: env  ## mend style and format
	.venv/bin/python -m ruff check --fix
	.venv/bin/python -m ruff format

zoo-check: env  ## evaluate the published checkpoints (needs data/)
	.venv/bin/python tools/zoo_check.py

clean:  ## remove .venv and everything built
	rm -rf .venv build dist mmpsa.egg-info mmpsa/.mim
