# Everything runs in .venv; PYTHON chooses what it is made from (3.11 or newer).
PYTHON ?= python3
OUT ?= out
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo up test fuzz format clean

demo: .venv/ready  ## draw pairs of every label over HTTP into $(OUT)/
	$(BIN)/pathar demo --out $(OUT)

up: .venv/ready  ## start Redis, one worker and the API here; Ctrl-C stops them
	$(BIN)/pathar up

test: .venv/ready-dev  ## format, lint, types, tests: what CI runs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

fuzz: .venv/ready-dev  ## 1,000 requests to each operation, 1,000 random histories of the store
	PATHAR_TEST_EXAMPLES=1000 $(BIN)/pytest tests/test_api_contract.py tests/store/test_histories.py

format: .venv/ready-dev  ## rewrite the code in the house style
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove the environment and what was drawn
	rm -rf .venv $(OUT)

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/ready: .venv/bin/python pyproject.toml constraints.txt
	$(INSTALL) --editable '.[all,embedded]'
	touch $@

.venv/ready-dev: .venv/ready
	$(INSTALL) --editable '.[all,embedded,traces,s3,dev,features,training,benchmarks]'
	$(INSTALL) --no-deps lpips==0.1.4  # it asks for torchvision, of which nothing is needed
	touch $@
