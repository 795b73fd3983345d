# Everything runs in .venv; PYTHON chooses what it is made from (3.11 or newer).
PYTHON ?= python3
OUT ?= out
BIN := .venv/bin
# Tests start many processes; each would compile all modules again.
export PYTHONDONTWRITEBYTECODE :=
# More than two cores have: tests wait for processes.
PROCESSES := 4
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help demo up check test types tests fuzz format clean

help:  ## print these targets
	@sed -n 's/^\([a-z]*\):.*  ## /\1\t/p' Makefile | expand -t 10

demo: .venv/ready  ## draw pairs of every label over HTTP into out/, or into OUT=FOLDER
	$(BIN)/pathar demo --out $(OUT)

up: .venv/ready  ## start Redis, one worker and the API here; Ctrl-C stops them
	$(BIN)/pathar up

check: FAST := -m 'not processes and not slow'
check: PROCESSES := 2
check: test  ## format, lint, types, tests without processes: under two minutes

test: .venv/ready-dev  ## format, lint, types, all tests: what CI runs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@$(MAKE) --no-print-directory --jobs 2 --keep-going types tests PROCESSES=$(PROCESSES) FAST="$(FAST)"

types: .venv/ready-dev  ## types alone
	$(BIN)/mypy

tests: .venv/ready-dev  ## tests alone
	$(BIN)/pytest --numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder $(FAST)

fuzz: .venv/ready-dev  ## 1,000 requests to each operation, 1,000 histories of the store, 2,000 masks
	PATHAR_TEST_EXAMPLES=1000 $(BIN)/pytest tests/test_api_contract.py tests/store/test_histories.py
	PATHAR_TEST_EXAMPLES=2000 $(BIN)/pytest tests/training/test_masks_property.py

format: .venv/ready-dev  ## rewrite the code in the house style
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove the environment, what was compiled and what was drawn
	rm -rf .venv model/native/*.so $(OUT)

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/ready: .venv/bin/python pyproject.toml constraints.txt | .venv/decoder
	$(INSTALL) --editable '.[all,embedded]'
	touch $@

# Where it cannot be compiled, the command says what to do, and torch decodes.
.venv/decoder: model/native/decode.cpp model/native/build.py | .venv/bin/python
	$(BIN)/python -m model.native.build && touch $@ || true

.venv/ready-dev: .venv/ready
	$(INSTALL) --editable '.[all,embedded,traces,s3,sign,dev,features,training,benchmarks]'
	$(INSTALL) --no-deps lpips==0.1.4  # it asks for torchvision, of which nothing is needed
	touch $@
