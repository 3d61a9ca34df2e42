# Everything runs from .venv, which `make` creates by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install quickstart test lint bench bench-gpu readme-tables clean
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
	$(BIN)/packmamba quickstart --config configs/quickstart.yaml

test: install
	$(BIN)/python -m pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: install
	$(BIN)/packmamba compare --device cpu --output runs/compare && cp runs/compare/compare.json bench/results/
	$(BIN)/packmamba compare --device cpu --modes packed --recompute none conv block --output runs/recompute \
		&& cp runs/recompute/compare.json bench/results/recompute.json
	$(BIN)/packmamba bench kernels --device cpu --distributions lognormal --output bench/results/kernels_cpu.json
	$(BIN)/packmamba bench loss_memory --output bench/results/loss_memory.json
	$(BIN)/packmamba bench packers --output bench/results/packers.json
	$(BIN)/packmamba bench loader --output bench/results/loader.json
	$(BIN)/packmamba bench tokenise --documents 20000 --workers 0 2 --output bench/results/tokenise.json
	$(BIN)/packmamba bench instructions --output bench/results/instructions.json
	$(BIN)/packmamba bench accuracy --output bench/results/accuracy.json
	OMP_NUM_THREADS=1 $(BIN)/packmamba bench host --output bench/results/host.json

bench-gpu: install
	$(BIN)/packmamba bench gpu

readme-tables: install
	$(BIN)/python -m packmamba.bench.readme_tables

clean:
	rm -rf $(VENV) .cache runs
