# Two commands for a newcomer: `make demo` and `make test`. Everything else is in README.md.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: install demo test recipes faults fuzz lint clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: FedMed needs Python 3.11 or later, $(PYTHON) is older"; echo "  hint: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the pinned dependencies into $(VENV): a few minutes, the first time only"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[site,aggregator,dev]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/fedmed run configs/experiment/demo.yaml

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# Every recipe's tiny variant, as a federation of real processes; some minutes each.
recipes: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/recipes -m recipes

# As root: it mounts small disks and makes network namespaces, and takes them away again.
faults: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults

# 100,000 damaged inputs for each parser of what comes from outside.
fuzz: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache
