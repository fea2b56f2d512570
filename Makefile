# Everything happens in a .venv of this folder; no docker, no root.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do $$p -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
READY := .venv/.ready
DATA ?= posedrop-data
NEWEST := .venv-newest
JOBS ?= 2
# Of more tests that failed none is run again.
FEW := 3
FAILED := .pytest_cache/v/cache/lastfailed
# The types of the page's JavaScript; nothing of it is committed or served.
TYPESCRIPT := typescript@7.0.2
TSC := .venv/$(TYPESCRIPT)/node_modules/.bin/tsc
# Tests that are smaller in make test.
FULL := tests/e2e/test_workers.py tests/e2e/test_restart.py tests/e2e/test_forms.py tests/faults/test_soak.py tests/faults/test_handlers.py tests/faults/test_telling.py
UNIT := not torch and not server and not child

.PHONY: demo up test failed unit newest soak uploads fuzz viewer readers lint page-types bench pictures clean help

help:  ## Show this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 12

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "posedrop needs Python 3.11 or newer (set PYTHON=/path/to/python)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "installing DeepLabCut, torch and the rest into .venv: some minutes, about 7 GB"
	@rm -rf *.egg-info  # an older one would tell where the analyses were
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e '.[worker,explore,dev]'
	@# pip compiles on one processor; and walled in, a child could not keep what it compiles.
	@$(BIN)/python -m compileall -qq -j 0 -x '/tests?/' .venv/lib/python*/site-packages || true
	@touch $(READY)

demo: $(READY)  ## Start everything, PUT a video through a presigned URL, show its poses (EXIT=1: then stop)
	$(BIN)/posedrop demo $(if $(EXIT),--exit,)

up: $(READY)  ## Start the stack and leave it running
	$(BIN)/posedrop --data-dir $(DATA) up

# Of two processes, torch's threads that wait would spin and keep the others from the processors.
test: $(READY)  ## Run all tests, those of JOBS files at the same time: most of them wait for servers
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n $(JOBS)

failed: $(READY)  ## Run the files of those tests again that failed, if they are few, on stacks of their own
	@grep -c '": true' $(FAILED) | grep -q '^[1-$(FEW)]$$' || { echo "not one to $(FEW) failed: none is run again"; exit 1; }
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest $$(sed -nE 's/^ *"([^":]+\.py).*": true,?$$/\1/p' $(FAILED) | sort -u)

unit: $(READY)  ## Run the tests that need no torch, no server and no child process
	$(BIN)/python -m pytest -n $(JOBS) -p tests.support.no_torch -m "$(UNIT)" tests/unit tests/test_docs.py

newest:  ## Ask the newest torch, DeepLabCut and others for the private names that posedrop uses; reports only (7 GB)
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --upgrade pip
	$(NEWEST)/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager -e '.[worker,explore,dev]'
	@# Newer than what pyproject.toml and DeepLabCut allow: what will break is to be known before.
	-$(NEWEST)/bin/python -m pip install --quiet --upgrade deeplabcut timm torch torchvision
	-$(NEWEST)/bin/python -m pytest -q -p no:cacheprovider tests/test_private_names.py
	@$(NEWEST)/bin/python -m pip list --format=freeze | grep -E '^(boto|deeplabcut|dramatiq|pika|sqlite-utils|timm|torch|uvicorn)'

uploads: $(READY)  ## Interrupt uploads at full size: 512 MiB, 200 files; in make test they are smaller
	POSEDROP_FULL_SIZE=1 $(BIN)/python -m pytest -s tests/integration/test_uploads.py

soak: $(READY)  ## Kill everything in turn while uploads go on, balance the books, call the API in odd ways, then fuzz (SECONDS, SEED, STACK)
	POSEDROP_FULL_SIZE=1 $(BIN)/python -m pytest $(FULL)
	POSEDROP_FULL_SIZE=1 $(BIN)/python -m tests.faults.soak --seconds $(or $(SECONDS),300) --seed $(or $(SEED),1) --stack $(or $(STACK),embedded)
	$(BIN)/python -m tests.faults.api_calls --seed $(or $(SEED),1)
	$(MAKE) fuzz

fuzz: $(READY)  ## Damage films, cut them at every length: each ends; compare films with OpenCV (SECONDS, SEED, EXAMPLES)
	$(BIN)/python -m tests.faults.fuzz --cuts --seconds $(or $(SECONDS),300) --seed $(or $(SEED),1)
	$(BIN)/python -m tests.faults.films --examples $(or $(EXAMPLES),1000)

viewer: $(READY)  ## Seek 200 times and step 100 times through a film of each kind, measure an hour of film (SEEKS, STEPS)
	$(BIN)/python -m tests.faults.viewer --seeks $(or $(SEEKS),200) --steps $(or $(STEPS),50)
	$(BIN)/python -m tests.faults.viewer --speed

readers: $(READY)  ## Have keypoint-MoSeq, VAME, SimBA and movement read a folder's tables, each in an environment of its own below build/readers (10 GB)
	$(BIN)/python -m tests.readers

lint: $(READY)  ## Style, types (of the page's JavaScript too, by npm) and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@if command -v npm >/dev/null; then $(MAKE) --no-print-directory page-types; \
	elif [ -n "$$POSEDROP_CI" ]; then echo "npm is not on this machine"; exit 1; \
	else echo "npm is not on this machine: the types of the page's JavaScript were not checked"; fi

page-types: $(TSC)
	$(TSC) -p jsconfig.json

$(TSC):
	npm install --silent --no-save --no-audit --no-fund --prefix .venv/$(TYPESCRIPT) $(TYPESCRIPT)

bench: $(READY)  ## Measure against stock DeepLabCut in the same run: tables, and build/*.json
	$(BIN)/python -m benchmarks.engine
	$(BIN)/python -m benchmarks.grid
	$(BIN)/python -m benchmarks.events
	$(BIN)/python -m benchmarks.scale
	$(BIN)/python -m benchmarks.page

pictures: $(READY)  ## Take the README's pictures of the page anew, in Chromium
	$(BIN)/python -m tests.pictures

clean:  ## Remove the .venv and what the demo left
	rm -rf .venv $(NEWEST) build posedrop-demo
