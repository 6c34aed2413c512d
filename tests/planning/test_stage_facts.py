"""What a method means for memory and time: PiSSA's two halves, references, KTO's baseline."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from prefine.api import load_recipe
from prefine.models.loading.adapters import put_adapter
from prefine.models.loading.location import locate_model
from prefine.planning.activations import Forward, TreeLengths, inference_bytes
from prefine.planning.machine import Machine
from prefine.planning.model_facts import AdapterFacts, ModelFacts, ScoringFacts
from prefine.planning.plan import plan_stage
from prefine.planning.stage_facts import stage_facts
from prefine.planning.workload import Workload
from tests.planning.test_architecture import QWEN_7B
from tests.planning.test_plan import BIG, CPU, GPU, PAIRS, plan, size
from tests.training import tiny

LINEAR = 28 * (2 * 3584 * 3584 + 2 * 3584 * 512 + 3 * 3584 * 18_944)
ONE_OPERATION_A_SECOND = Machine("cpu", "float32", None, {"float32": 1e-9 / 0.62}, 1e10)
PISSA = {"r": 16, "init": "pissa_niter_4"}


def test_pissa_has_the_parameters_of_the_adapter_that_is_made(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model")
    made = tiny.recipe("dpo", tmp_path / "run", model, tmp_path / "none.jsonl", {"lora": {"r": 4, "init": "pissa"}})
    base = LlamaForCausalLM(LlamaConfig.from_pretrained(model))
    real = put_adapter(base, locate_model(str(model)), made.lora, True, scores=False)
    parameters = sum(each.numel() for each in real.parameters() if each.requires_grad)
    assert stage_facts(made, "dpo", {}, CPU).trainable == parameters


def test_pissa_counts_as_twice_the_rank_here_and_in_later_stages() -> None:
    found, twice = plan("dpo", lora=PISSA), plan("dpo", lora={"r": 32})
    assert found.peak_bytes == twice.peak_bytes > plan("dpo", lora={"r": 16}).peak_bytes
    assert found.disk_bytes == twice.disk_bytes
    why = next(term.why for term in found.memory if term.name == "adapters")
    assert why == "rank 32 on 196 layers, float32, half of which holds the start"
    assert found.result.adapter == AdapterFacts(32)
    recipe = load_recipe("dpo", {"model": {"name": "stage:big"}, "lora": PISSA})
    begun = ModelFacts("big", "big", QWEN_7B, AdapterFacts(16))  # an adapter that is trained further keeps its rank
    further = plan_stage(recipe, parents={"big": begun}, machine=GPU, workload=PAIRS)
    assert size(further, "adapters") == size(plan("dpo", lora={"r": 16}), "adapters")
    assert "holds the start" not in str(further.lines())


def test_each_step_of_kto_computes_prompts_with_the_answers_of_others() -> None:
    """By hand: prompts of 2 and 4 tokens with answers of 3 and 1 become 2 + 1 and 4 + 3: 10 tokens, of which 4 are
    targets, and 6 + 28 pairs of query and key. The reference reads them once more before the first step."""
    rows = Workload(2, 0, (TreeLengths(2, (3,)), TreeLengths(4, (1,))), "by hand")
    found, without = (
        plan("kto", ONE_OPERATION_A_SECOND, rows, kto={"loss": loss}) for loss in ("kto", "apo_zero_unpaired")
    )
    work = 2 * 10 * LINEAR + 28 * 4 * 34 * 3584 + 2 * 4 * 3584 * 152_064
    assert found.seconds_per_step is not None and without.seconds_per_step is not None
    assert found.seconds_per_step - without.seconds_per_step == pytest.approx(work)
    assert found.seconds is not None and without.seconds is not None and found.steps is not None
    assert found.seconds - without.seconds == pytest.approx(2 * found.steps * work)


def test_held_out_votes_have_a_baseline_at_each_evaluation() -> None:
    """One step, evaluated before and after; the reference reads the held-out mismatched answers once."""
    trees = (TreeLengths(2, (3,)), TreeLengths(4, (1,)))
    training = {"max_steps": 1}
    seconds = {
        (loss, heldout): plan(
            "kto", ONE_OPERATION_A_SECOND, Workload(2, heldout, trees, "by hand"), kto={"loss": loss}, training=training
        ).seconds
        or 0.0
        for loss in ("kto", "apo_zero_unpaired")
        for heldout in (0, 2)
    }
    more = {loss: seconds[loss, 2] - seconds[loss, 0] for loss in ("kto", "apo_zero_unpaired")}
    work = 2 * 10 * LINEAR + 28 * 4 * 34 * 3584 + 2 * 4 * 3584 * 152_064
    assert more["kto"] - more["apo_zero_unpaired"] == pytest.approx(3 * work)


def test_the_baseline_holds_the_longest_prompt_with_the_longest_answer() -> None:
    """Together they are cut to the length that rows may have."""
    rows = Workload(100, 0, (TreeLengths(900, (10,)), TreeLengths(10, (900,))), "by hand")
    found = plan("kto", workload=rows, training={"max_tokens_per_microbatch": 1024}, data={"max_length_tokens": 1000})
    moment = next(each for each in found.moments if each.name == "baseline")
    term = next(each for each in moment.terms if each.name == "answers of others")
    shapes = BIG.architecture
    how = Forward(shapes, "cuda", 2, GPU.kernel("bfloat16"), 16, shapes.targets("all-linear"))  # type: ignore[arg-type]
    assert term.bytes == inference_bytes(how, (TreeLengths(900, (100,)),), "language")
    without = plan("kto", workload=rows, kto={"loss": "apo_zero_unpaired"})
    assert "baseline" not in [each.name for each in without.moments]


def test_simpo_has_no_reference_to_compute() -> None:
    """The others compute one over all rows: 10 tokens a row by hand, 6 of them targets."""
    rows = Workload(100, 0, (TreeLengths(4, (3, 3)),), "by hand")
    found = plan("dpo", ONE_OPERATION_A_SECOND, rows)
    simpo = plan("dpo", ONE_OPERATION_A_SECOND, rows, dpo={"loss": "simpo"})
    assert found.seconds_per_step == simpo.seconds_per_step
    pairs = 7 * 8 / 2 + 3 * 4 + 3 * 4 / 2
    work = 2 * 10 * LINEAR + 28 * 4 * pairs * 3584 + 2 * 6 * 3584 * 152_064
    assert (found.seconds or 0) - (simpo.seconds or 0) == pytest.approx(100 * work)


def test_what_a_reward_run_was_trained_with_is_read_in_its_folder(tmp_path: Path) -> None:
    base, run = tiny.save_model(tmp_path / "base"), tmp_path / "reward"
    run.mkdir()
    (run / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(base), "r": 4, "target_modules": ["q_proj"]})
    )
    (run / "adapter_model.safetensors").touch()
    reward = {"bias": [0.5], "std": 1.0, "answers": 9, "max_length_tokens": 64, "quantization": "nf4"}
    recipe = load_recipe("ppo", {"model": {"name": str(base)}, "reward": {"name": str(run)}, "run": "r"})
    for dtype in ("float32", "bfloat16", None):
        (run / "reward.json").write_text(json.dumps({**reward, "compute_dtype": dtype}))
        assert stage_facts(recipe, "ppo", {}, CPU).rewards[0].scores == ScoringFacts("nf4", dtype)
    (run / "reward.json").unlink()
    (found,) = stage_facts(recipe, "ppo", {}, CPU).rewards
    assert found.scores is None and found.adapter == AdapterFacts(4, ("q_proj",))
