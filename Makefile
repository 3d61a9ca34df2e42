# Everything runs from .venv, which `make` creates by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install quickstart test test-fast lint bench bench-gpu readme-tables clean
.DEFAULT_GOAL := install

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "packmamba needs Python >= 3.11, and $(PYTHON) is $$($(PYTHON) --version); choose another: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

quickstart: install
	$(BIN)/packmamba quickstart

# Two processes of one thread each: torch's own threads gain nothing on the tests' small tensors.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test: install
	$(PYTEST)

test-fast: install
	$(PYTEST) -m "not slow"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: install
	$(BIN)/packmamba compare --device cpu --output runs/compare && cp runs/compare/compare.json benchmarks/results/
	$(BIN)/packmamba compare --device cpu --modes packed --recompute none conv block --output runs/recompute \
		&& cp runs/recompute/compare.json benchmarks/results/recompute.json
	$(BIN)/python -m benchmarks kernels --device cpu --distributions lognormal --output benchmarks/results/kernels_cpu.json
	$(BIN)/python -m benchmarks loss_memory --output benchmarks/results/loss_memory.json
	$(BIN)/python -m benchmarks packers --output benchmarks/results/packers.json
	$(BIN)/python -m benchmarks loader --output benchmarks/results/loader.json
	$(BIN)/python -m benchmarks tokenise --documents 20000 --workers 0 2 --output benchmarks/results/tokenise.json
	$(BIN)/python -m benchmarks instructions --output benchmarks/results/instructions.json
	$(BIN)/python -m benchmarks accuracy --output benchmarks/results/accuracy.json
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks host --output benchmarks/results/host.json

bench-gpu: install
	$(BIN)/python -m benchmarks gpu

readme-tables: install
	$(BIN)/python -m benchmarks.readme_tables

clean:
	rm -rf $(VENV) .cache runs
