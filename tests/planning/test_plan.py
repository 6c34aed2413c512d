"""Plans of recipes: reference points of 7B models, terms by hand, what rows and other stages change."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefine.api import load_recipe
from prefine.planning.activations import TreeLengths
from prefine.planning.machine import Machine
from prefine.planning.model_facts import AdapterFacts, ModelFacts, ScoringFacts
from prefine.planning.plan import StagePlan, plan_stage
from prefine.planning.workload import Workload
from prefine.recipe.loading import load_recipe as load_values
from prefine.recipe.registry import RECIPES
from tests.planning.test_architecture import QWEN_7B
from tests.training import tiny

GPU = Machine("cuda", "bfloat16", 80 * 10**9)
CPU = Machine("cpu", "float32", 64 * 10**9, {"float32": 100.0}, 10e9)
BIG = ModelFacts("big", "big", QWEN_7B, None, 15_231_233_024)
REWARD = ModelFacts("reward", "big", QWEN_7B, AdapterFacts(16), scores=ScoringFacts("none", "bfloat16"))
# The length of preference pairs of HH-RLHF: a prompt of 200 tokens, answers of 150.
PAIRS = Workload(10_000, 500, (TreeLengths(200, (150, 150)), TreeLengths(400, (400, 400))), "by hand")


def plan(method: str, machine: Machine = GPU, workload: Workload = PAIRS, **overrides: Any) -> StagePlan:
    recipe = load_recipe(method, {"model": {"name": "stage:big"}, **overrides})  # type: ignore[call-overload]
    return plan_stage(recipe, method=method, parents={"big": BIG, "reward": REWARD}, machine=machine, workload=workload)


def size(found: StagePlan, name: str) -> int:
    return sum(term.bytes for term in found.memory if term.name == name)


NF4 = {"name": "stage:big", "quantization": "nf4"}


def test_dpo_of_7b_on_nf4_fits_40_and_24_gb() -> None:
    """The weights alone: 6.5 billion of 0.516 bytes, and 1.09 billion of embeddings and output layer in bf16."""
    found = plan("dpo", model=NF4)
    assert size(found, "weights") == pytest.approx(6.525e9 * 0.51587 + 1.0905e9 * 2, rel=0.002)
    assert found.fits(40 * 10**9)
    smaller = plan("dpo", model=NF4, training={"max_tokens_per_microbatch": 1024})
    assert smaller.fits(24 * 10**9) and smaller.peak_bytes < found.peak_bytes


def test_ppo_of_7b_fits_40_gb() -> None:
    """Policy, reference, critic and reward model on one set of bf16 weights: 15.2 GB, not four times that."""
    prompts = Workload(10_000, 500, (TreeLengths(200, ()),), "by hand")
    found = plan("ppo", workload=prompts, reward={"name": "stage:reward"})
    assert size(found, "weights") == 2 * 7_615_616_512
    assert found.fits(40 * 10**9)
    assert size(found, "other models") == 4 * 40_370_176  # the reward model's adapter of rank 16


def test_all_weights_take_16_bytes_each_before_activations() -> None:
    found = plan("sft", lora=None)
    assert size(found, "weights") + size(found, "gradients") + size(found, "optimiser") == 16 * 7_615_616_512
    assert not found.fits(80 * 10**9)


OUTPUT_LAYER = 152_064 * 3584
LINEAR = 28 * (2 * 3584 * 3584 + 2 * 3584 * 512 + 3 * 3584 * 18_944)
OTHERS = 7_615_616_512 - LINEAR - OUTPUT_LAYER + 3584  # embeddings, norms, biases and the score head
ADAPTER = 4 * 40_370_176
NF4_BYTES = 1 / 2 + 1 / 64 + 1 / 4096


@pytest.mark.parametrize(
    ("reward", "settings", "bytes_", "why"),
    [
        (REWARD, {}, ADAPTER, "on the same weights"),
        (REWARD, {"quantization": "nf4"}, 2 * (LINEAR + OTHERS) + ADAPTER, "model.quantization was none"),
        (REWARD, {"dtype": "float32"}, 2 * (LINEAR + OTHERS) + ADAPTER, "computes in bfloat16, the policy in float32"),
        (replace(REWARD, base="another"), {}, 2 * (LINEAR + OTHERS) + ADAPTER, "of another base model"),
        (
            replace(REWARD, scores=ScoringFacts("nf4", "float32")),
            {},
            round(LINEAR * NF4_BYTES) + 4 * OTHERS + ADAPTER,
            "model.quantization was nf4 in its training, the policy's is none",
        ),
        (
            replace(REWARD, scores=ScoringFacts("int8", "bfloat16")),
            {},
            LINEAR + 28 * 4 * (2 * 3584 + 2 * 512 + 2 * 18_944 + 3584) + 2 * OTHERS + ADAPTER,
            "model.quantization was int8",
        ),
        (replace(REWARD, scores=ScoringFacts("none", None)), {"dtype": "float32"}, ADAPTER, "on the same weights"),
        (replace(REWARD, adapter=None), {}, 4 * (LINEAR + OTHERS), "not an adapter of a reward run"),
        (replace(REWARD, adapter=None, scores=None), {}, 2 * (LINEAR + OTHERS), "not an adapter of a reward run"),
    ],
)
def test_a_reward_model_that_a_run_loads_besides_the_policy_is_counted_as_it_is_loaded(
    reward: ModelFacts, settings: dict[str, Any], bytes_: int, why: str
) -> None:
    """By hand: as in its own training, and float32 where all weights were trained (see scoring.load_reward)."""
    recipe = load_recipe("ppo", {"model": {"name": "stage:big", **settings}, "reward": {"name": "stage:reward"}})
    prompts = Workload(10_000, 500, (TreeLengths(200, ()),), "by hand")
    found = plan_stage(recipe, parents={"big": BIG, "reward": reward}, machine=GPU, workload=prompts)
    assert size(found, "other models") == bytes_
    assert why in next(term.why for term in found.memory if term.name == "other models")


@pytest.mark.parametrize(
    "settings", [{}, {"quantization": "nf4"}, {"quantization": "int8", "dtype": "float32"}, {"dtype": "float32"}]
)
def test_a_reward_stage_with_the_same_settings_shares_its_weights(settings: dict[str, Any]) -> None:
    trained = plan("reward", model={"name": "stage:big", **settings}).result
    assert trained.scores == ScoringFacts(settings.get("quantization", "none"), settings.get("dtype", "bfloat16"))
    recipe = load_recipe("ppo", {"model": {"name": "stage:big", **settings}, "reward": {"name": "stage:trained"}})
    prompts = Workload(10_000, 500, (TreeLengths(200, ()),), "by hand")
    found = plan_stage(recipe, parents={"big": BIG, "trained": trained}, machine=GPU, workload=prompts)
    assert size(found, "other models") == ADAPTER
    assert plan("sft").result.scores is None


def test_an_adapter_of_an_earlier_stage_is_trained_further_with_its_own_rank() -> None:
    first = plan("sft", lora={"r": 64}).result
    assert first.adapter == AdapterFacts(64)
    recipe = load_recipe("dpo", {"model": {"name": "stage:sft"}})
    found = plan_stage(recipe, method="dpo", parents={"sft": first}, machine=GPU, workload=PAIRS)
    assert size(found, "adapters") == size(plan("dpo", lora={"r": 64}), "adapters")


def test_longer_rows_need_more_up_to_the_length_that_the_recipe_allows() -> None:
    rows = [Workload(100, 10, (TreeLengths(n, (n, n)),) * 8, "by hand") for n in (50, 200, 800, 2000)]
    peaks = [plan("dpo", workload=each, training={"max_tokens_per_microbatch": 512}).peak_bytes for each in rows]
    assert peaks[0] < peaks[1] < peaks[2]
    cut = plan("dpo", workload=rows[3], data={"max_length_tokens": 2050}, training={"max_tokens_per_microbatch": 512})
    assert max(tree.longest for tree in cut.workload.trees) == 2050
    assert cut.peak_bytes > peaks[2]


def test_a_few_short_rows_do_not_fill_the_budget() -> None:
    few = Workload(2, 0, (TreeLengths(20, (20, 20)),) * 2, "by hand")
    assert plan("dpo", workload=few).peak_bytes < plan("dpo").peak_bytes
    assert "120 tokens in a microbatch" in next(
        t.why for t in plan("dpo", workload=few).memory if t.name == "activations"
    )


def test_time_is_work_by_rate_and_steps() -> None:
    """Twice the rate halves a step; twice the epochs double the steps."""
    slow, fast = (plan("sft", Machine("cpu", "float32", None, {"float32": rate}, 1e10)) for rate in (100.0, 200.0))
    assert slow.seconds_per_step is not None and fast.seconds_per_step is not None
    assert slow.seconds_per_step == pytest.approx(2 * fast.seconds_per_step)
    longer = plan("sft", CPU, training={"epochs": 2.0})
    assert (longer.steps, plan("sft", CPU).steps) == (2500, 1250)
    assert longer.seconds is not None and longer.seconds > 1.9 * (plan("sft", CPU).seconds or 0)
    assert plan("sft").seconds is None  # no GPU here was measured


def test_the_work_of_a_step_by_hand() -> None:
    """One prompt of 2 and an answer of 3 tokens on a model of 10 layers: 4 operations a frozen weight and token, 6 an
    adapter's, and attention over 15 pairs of query and key."""
    rows = Workload(1, 0, (TreeLengths(2, (3,)),), "by hand")
    found = plan("sft", Machine("cpu", "float32", None, {"float32": 1e-9 / 0.62}, 1e10), rows)
    linear, adapters = 28 * (2 * 3584 * 3584 + 2 * 3584 * 512 + 3 * 3584 * 18_944), 40_370_176
    expected = 5 * (4 * linear + 6 * adapters) + 28 * 12 * 15 * 3584 + 4 * 3 * 3584 * 152_064
    assert found.seconds_per_step == pytest.approx(expected)


def test_generation_by_hand() -> None:
    """40 samples in 32 slots, before and after training: each time twice 10 rows of new tokens. A row reads 4 bytes of
    every weight, which takes longer here than its products, and calls 28 layers."""
    machine = Machine("cpu", "float32", None, {"float32": 1e6}, 1e10)
    samples, none = (
        plan("sft", machine, report={"samples": count, "max_new_tokens": 10}).seconds or 0 for count in (40, 0)
    )
    linear = 28 * (2 * 3584 * 3584 + 2 * 3584 * 512 + 3 * 3584 * 18_944)
    row = 4 * (linear + 152_064 * 3584) / 1e10 + 28 * (0.0012 + 32 * 3584 * 8.7e-8)
    assert samples - none == pytest.approx(2 * 20 * row)


def test_a_reward_model_is_assessed_at_its_end() -> None:
    """100 training rows and 50 held-out rows are scored again, and 32 answers are spoilt, about 64 rows more; 50 rows
    are evaluated before and after."""
    rows = Workload(1000, 50, (TreeLengths(20, (20, 20)),) * 2, "by hand")
    training = {"evaluate_every_steps": None, "keep_best": False, "early_stopping_patience": None}
    few, none = (plan("reward", CPU, rows, readiness={"trained_pairs": each}, training=training) for each in (100, 1))
    assert few.seconds is not None and none.seconds is not None
    assert few.steps is not None and few.seconds_per_step is not None
    forwards = few.seconds - 20 - few.steps * few.seconds_per_step
    assert (few.seconds - none.seconds) / forwards == pytest.approx(99 / (100 + 100 + 50 + 64))


def test_the_reference_points_of_the_page_are_those_of_the_planner() -> None:
    page = (Path(__file__).parents[2] / "docs" / "planning.md").read_text("utf-8")
    rows = re.findall(r"^\| (\w+) \| ([^|]*)\| ([\d.]+) \| ([\d.]+) \|$", page, re.MULTILINE)
    prompts = Workload(10_000, 500, (TreeLengths(200, ()),), "by hand")
    parents = {"big": BIG, "reward": REWARD}
    for method, settings, peak, weights in rows:
        made = load_values(None, ["model.name=stage:big", *re.findall("`(.*?)`", settings)], RECIPES[method])
        workload = prompts if method == "ppo" else PAIRS
        found = plan_stage(made, method=method, parents=parents, machine=GPU, workload=workload)
        shown = f"{found.peak_bytes / 1e9:.1f}", f"{size(found, 'weights') / 1e9:.1f}"
        assert shown == (peak, weights), (method, settings)
    assert len(rows) == 6


def test_rows_are_counted_in_the_data(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model")
    data = tiny.write_rows(tmp_path / "pairs.jsonl", tiny.pairs(30))
    made = tiny.recipe("dpo", tmp_path / "run", model, data)
    found = plan_stage(made, method="dpo", machine=CPU)
    assert found.workload.rows is not None and found.workload.heldout is not None
    assert found.workload.rows + found.workload.heldout == 30
    assert found.workload.source.startswith("counted: ")
    assert found.steps == 2 * -(-found.workload.rows // 4)


def test_rows_that_are_not_there_yet_are_assumed_to_be_long(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model")
    made = tiny.recipe("dpo", tmp_path / "run", model, tmp_path / "later.jsonl")
    found = plan_stage(made, method="dpo", machine=CPU)
    assert (found.workload.rows, found.steps, found.seconds) == (None, None, None)
    assert found.workload.source == "assumed: every row has 160 tokens (data.max_length_tokens)"
    assert found.seconds_per_step is not None
    assert any("number of steps is not known" in line for line in found.lines())
