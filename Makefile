# demo: from a catalogue to recommendations; test: the tests; check: style and types; bench: measurements
PYTHON ?= python3
SERVE ?= 1
BIN := .venv/bin

demo: .venv/ready
	$(BIN)/python jobs/pipeline.py synthetic --library demo-library $(if $(filter 0,$(SERVE)),--no-serve)

test: .venv/ready
	$(BIN)/python -m pytest -q

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/ready
	$(BIN)/python -m pytest -q -s --timeout=0 tests/benchmarks/bench_*.py

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

.PHONY: demo test check bench
