"""PPO stopped at any of its safe points, also between the optimiser steps of an update, goes on as if it never was."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import shutil
import signal
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from prefine.errors import CheckpointError, Stopped
from prefine.recipe.stage import StageRecipe
from prefine.training.loop.loop import Loop
from tests.training import tiny

Make = Callable[..., StageRecipe]
# Two updates of two passes over two minibatches: each has three safe points within, and there is one between them.
SHORT = {**tiny.UNGUARDED, "training.max_steps": 2, "training.evaluate_every_steps": 1}
SHORT |= {"training.sample_every_steps": 1, "rollout.heldout_prompts": 3, "ppo.max_kl": None}
SAFE_POINTS = 7


class Asked:
    """How often runs begun now have been asked whether to stop; they stop at these times, counted from 1."""

    def __init__(self, times: Collection[int], monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = itertools.count(1)
        real = Loop.__post_init__

        def asked(loop: Loop) -> None:
            real(loop)
            loop.stop_requested = lambda: next(self.count) in times

        monkeypatch.setattr(Loop, "__post_init__", asked)


def stopped_at_every_safe_point(made: StageRecipe, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run it to its end, stopping wherever that is possible, a new start each time; returns how often it stopped."""
    stops = 0
    with monkeypatch.context() as patched:
        Asked(range(1, 1000), patched)
        while True:
            try:
                tiny.train(made, resume=stops > 0)
                return stops
            except Stopped:
                stops += 1


def updates(made: StageRecipe) -> list[dict[str, Any]]:
    return [row for row in tiny.metrics(Path(made.run)) if row["kind"] == "train"]


def test_one_stop_at_each_safe_point(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the first update, between the two, and within the last; the test below stops at all of them in one run.

    Within an update the checkpoint lies apart from the others, and is gone once the update is done.
    """
    whole = make("ppo", "whole", SHORT)
    tiny.train(whole)
    for time in (1, 4, 7):
        cut = make("ppo", f"cut-{time}", {**SHORT, "training.save_every_steps": None})
        with monkeypatch.context() as patched:
            Asked([time], patched)
            where = "after step 1" if time == 4 else f"within step {1 + time // 4}"
            with pytest.raises(Stopped, match=f"stopped {where} of 2, all saved"):
                tiny.train(cut)
        within = Path(cut.run) / "checkpoints" / "within-step"
        assert within.exists() == (time != 4)
        assert tiny.manifest(Path(cut.run))["status"] == "stopped"
        tiny.train(cut, resume=True)
        assert not within.exists()
        assert not tiny.differences(Path(whole.run), Path(cut.run))
        assert tiny.manifest(Path(cut.run))["status"] == "finished"


def test_a_last_update_that_was_cut_counts_its_rollouts_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answers of an update are written before it is cut: the reward is not asked again when it goes on."""
    calls: list[int] = []
    real = tiny.letters
    monkeypatch.setattr(tiny, "letters", lambda rows: calls.append(len(rows)) or real(rows))
    monkeypatch.setattr("prefine.training.rl.heldout.HeldoutAnswers.evaluate", lambda _: {"loss": 0.0})
    cut = make("ppo", "cut", {**SHORT, "training.max_steps": 1, "data.heldout_fraction": 0})
    assert stopped_at_every_safe_point(cut, monkeypatch) == 3
    assert calls == [3]  # the first of 5 updates on 19 prompts


KINDS: dict[str, dict[str, Any]] = {
    "a critic on an adapter of its own": {"ppo.critic": "adapter"},
    "rloo": {"advantage": "rloo"},
    "grpo": {"advantage": "grpo", "rollout.samples_per_prompt": 3},
    "grpo as dapo has it": {
        "advantage": "grpo",
        "rollout.samples_per_prompt": 3,
        "ppo.clip_high": 0.28,
        "reward.overlong_tokens": 6,
    },
    "grpo as dr. grpo has it": {"advantage": "grpo", "ppo.loss_average": "max_length", "ppo.advantage_std": "none"},
    "online dpo": {"advantage": "online_dpo"},
    "all weights": {"lora": None},
    "principal components, and a critic on them": {
        "lora.init": "pissa",
        "lora.dropout": 0.0,
        "lora.dora": True,
        "ppo.critic": "adapter",
    },
    "an adaptive controller": {"kl.controller": "adaptive", "kl.horizon": 4, "kl.target": 1e-3},
    "a running scale": {"reward.scale": "running", "rollout.samples_per_prompt": 2},
    "updates that end early": {"ppo.max_kl": 3e-3, "ppo.epochs": 4, "ppo.minibatches": 1},
    "a critic that warms up": {"ppo.value_warmup_updates": 1},
    "whitened rewards and an entropy bonus": {"reward.whiten": True, "ppo.entropy_coefficient": 0.1},
    "bf16": {"model.dtype": "bfloat16"},
    "padded rows": {"model.attn_implementation": "sdpa"},
    "nf4": {"model.quantization": "nf4"},
    "the best weights are kept": {"training.keep_best": True, "training.schedule": "cosine"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_at_every_safe_point_of_one_run(kind: str, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, cut = make("ppo", "whole", SHORT | KINDS[kind]), make("ppo", "cut", SHORT | KINDS[kind])
    tiny.train(whole)
    stops = stopped_at_every_safe_point(cut, monkeypatch)
    assert not tiny.differences(Path(whole.run), Path(cut.run))
    rows = updates(cut)
    steps = [row["optimiser_steps"] for row in rows]
    assert stops == sum(steps) - 1
    checks = [
        [(row["name"], row["passed"]) for row in tiny.manifest(Path(run.run))["self_checks"]] for run in (whole, cut)
    ]
    assert sorted(checks[0]) == sorted(checks[1]) and ("first ratio", True) in checks[1]
    if kind == "updates that end early":
        assert min(steps) < 4
    else:
        assert stops == SAFE_POINTS
    if kind == "an adaptive controller":
        assert rows[0]["kl_coefficient"] != rows[1]["kl_coefficient"]


def test_on_an_adapter_with_a_shared_reward_model(
    make: Make, sft_run: Path, reward_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference is the adapter that the run began on, and the reward stays what it was."""
    judge = shutil.copytree(reward_run, tmp_path / "judge")
    changes = {**SHORT, "model.name": str(sft_run), "reward.name": str(reward_run), "reward.judge": str(judge)}
    changes |= {"ppo.critic": "adapter"}
    whole, cut = make("ppo", "whole", changes), make("ppo", "cut", changes)
    tiny.train(whole)
    assert stopped_at_every_safe_point(cut, monkeypatch) == SAFE_POINTS
    assert not tiny.differences(Path(whole.run), Path(cut.run))


def test_rollouts_of_updates_that_are_done_again_are_not_there_twice(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped behind its first checkpoint, the run repeats an update whose answers were kept already."""
    made = make("ppo", "cut", {**SHORT, "training.max_steps": 3})
    with monkeypatch.context() as patched:
        real = Loop.save

        def failing(loop: Loop, **more: Any) -> None:
            if loop.position.step == 2:
                raise ZeroDivisionError  # as if killed between an update's answers and its checkpoint
            real(loop, **more)

        patched.setattr(Loop, "save", failing)
        with pytest.raises(ZeroDivisionError):
            tiny.train(made)
    kept = Path(made.run) / "rollouts.jsonl"
    assert {json.loads(line)["step"] for line in kept.read_text().splitlines()} == {1, 2}
    assert "resuming after step 1\n" in tiny.train(made, resume=True)
    rows = [json.loads(line) for line in kept.read_text().splitlines()]
    assert [row["step"] for row in rows] == [1] * 3 + [2] * 4 + [3] * 4  # 19 prompts in 5 updates


def test_ctrl_c_within_an_update(make: Make, tmp_path: Path) -> None:
    """The optimiser step is finished, all is saved, and the last line is the command that goes on."""
    changes = {**SHORT, "training.max_steps": 3, "ppo.epochs": 4}
    whole, cut = make("ppo", "whole", changes), make("ppo", "cut", changes)
    tiny.train(whole)

    def interrupted() -> None:
        real, count = Loop.optimise, itertools.count(1)

        def optimise(loop: Loop, *arguments: Any) -> dict[str, float]:
            if next(count) == 12:
                os.kill(os.getpid(), signal.SIGINT)
            return real(loop, *arguments)

        Loop.optimise = optimise  # type: ignore[method-assign]

    code, said = tiny.Command("ppo", tiny.written(cut, tmp_path / "cut.yaml"), prepare=interrupted).end()
    assert code == 130, said
    last = said.splitlines()[-1]
    assert last.startswith("stopped within step 2 of 3, all saved; to resume: prefine ppo ")
    program, *arguments = shlex.split(last.partition("to resume: ")[2])
    code, said = tiny.Command(*arguments).end()
    assert (program, code, "resuming after step 1" in said) == ("prefine", 0, True), said
    assert not tiny.differences(Path(whole.run), Path(cut.run))


def other_weights(model: Path) -> None:
    file = model / "adapter_model.safetensors"
    save_file({name: -weight for name, weight in load_file(file).items()}, file)


def other_template(model: Path) -> None:
    with (model / "chat_template.jinja").open("a") as template:
        template.write("{# changed #}")


def other_ends(model: Path) -> None:
    (model / "generation_config.json").write_text('{"eos_token_id": [7]}')


@pytest.mark.parametrize(
    ("field", "change", "named"),
    [
        ("reward.name", other_weights, ""),
        ("reward.name", other_template, ""),
        ("model.name", other_weights, ": the adapter"),
        ("model.name", other_ends, ": the generation settings or token ids"),
    ],
)
def test_other_files_under_the_same_name_are_refused(
    field: str,
    change: Callable[[Path], None],
    named: str,
    make: Make,
    sft_run: Path,
    reward_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As another base model is: the reward would be another, or what the policy is held near to."""
    copied = shutil.copytree(reward_run if field == "reward.name" else sft_run, tmp_path / "copied")
    made = make("ppo", "cut", {**SHORT, field: str(copied)})
    with monkeypatch.context() as patched:
        Asked([4], patched)
        with pytest.raises(Stopped):
            tiny.train(made)
    change(copied / "model")
    with pytest.raises(CheckpointError, match=rf"files of {copied} have changed since this run began{named}"):
        tiny.train(made, resume=True)


def test_a_reward_model_may_go_once_it_is_loaded(make: Make, reward_run: Path, tmp_path: Path) -> None:
    """Checkpoints tell of what was loaded, not of what lies there now."""
    copied = shutil.copytree(reward_run, tmp_path / "reward")
    made = make("ppo", "run", {**SHORT, "reward.name": str(copied)})
    real = Loop.run_to_end

    def without(loop: Loop) -> None:
        shutil.rmtree(copied)
        real(loop)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Loop, "run_to_end", without)
        tiny.train(made)
    assert tiny.manifest(Path(made.run))["status"] == "finished"
