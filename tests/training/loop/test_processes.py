"""Two processes train as one does: as torchrun and `accelerate launch` start them, here on the CPU through gloo."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState

from prefine.errors import CheckpointError, DataError, PrefineError, Stopped, TrainingError
from prefine.recipe.stage import StageRecipe
from prefine.training.loop.loop import Loop
from prefine.training.loop.processes import Processes
from prefine.training.rl.heldout import HeldoutAnswers
from prefine.training.stages import sft
from tests.training import tiny

pytestmark = pytest.mark.usefixtures("warm")

Make = Callable[..., StageRecipe]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def together(work: Callable[[int], object], processes: int = 2) -> list[int | None]:
    """Do `work(rank)` in forked copies of this process that know each other as torchrun's do; their exit codes."""
    port = str(free_port())

    def joining(rank: int) -> Callable[[], None]:
        def joined() -> None:
            os.environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(processes),
                "LOCAL_WORLD_SIZE": str(processes),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "OMP_NUM_THREADS": "1",
            }
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
            work(rank)

        return joined

    return tiny.waited_for([tiny.fork(joining(rank)) for rank in range(processes)], timeout_s=120)


CASES: list[tuple[str, dict[str, Any]]] = [
    ("sft", {}),
    ("dpo", {}),
    # 19 rows in steps of 6: the last step has one row, which leaves one process with none.
    ("sft", {"training.batch_size": 6}),
    ("dpo", {"training.batch_size": 6, "dpo.nll_weight": 0.5}),
    # The last step of each epoch has two votes, one for each process.
    ("kto", {"training.batch_size": 7, "kto.undesirable_weight": 1.5}),
    ("orpo", {"training.batch_size": 6}),
    ("reward", {"reward.heads": 3, "training.early_stopping_patience": None}),
    ("sft", {"lora": None, "training.batch_size": 1, "training.max_steps": 4}),
    ("ppo", {"reward.scale": "running", "rollout.samples_per_prompt": 2, "training.max_steps": 4}),
    ("ppo", {"advantage": "rloo", "training.batch_size": 3, "training.max_steps": 3}),
    # One prompt in an update leaves one process with none.
    ("ppo", {"ppo.critic": "adapter", "training.batch_size": 1, "training.max_steps": 3, "lora.dropout": 0.0}),
]
# Each process knows those of its own tokens only.
OWN = {"ratio_min", "ratio_max"}


@pytest.mark.parametrize(("stage", "changes"), CASES)
def test_two_processes_end_where_one_does(stage: str, changes: dict[str, Any], make: Make) -> None:
    """Losses and weights, to what summing in another order moves; rows that do not divide evenly weigh the same."""
    steady = {"lora.dropout": 0.0, "training.learning_rate": 1e-3, "training.save_every_steps": None}
    steady |= {**tiny.UNGUARDED, "ppo.max_kl": None} if stage == "ppo" else {}
    one, two = make(stage, "one", steady | changes), make(stage, "two", steady | changes)
    tiny.train(one)
    assert together(lambda rank: tiny.train(two)) == [0, 0]
    alone, shared = tiny.metrics(Path(one.run)), tiny.metrics(Path(two.run))
    assert [(row["kind"], row["step"]) for row in alone] == [(row["kind"], row["step"]) for row in shared]
    for mine, theirs in zip(alone, shared, strict=True):
        assert mine.pop("kind") == theirs.pop("kind")
        assert theirs.keys() == mine.keys()
        common = mine.keys() - OWN
        assert {name: theirs[name] for name in common} == pytest.approx(
            {name: mine[name] for name in common}, rel=1e-4, abs=1e-4
        )
    for name, weight in tiny.weights(Path(one.run)).items():
        torch.testing.assert_close(tiny.weights(Path(two.run))[name], weight, rtol=0, atol=2e-5)
    assert tiny.manifest(Path(two.run))["device"]["processes"] == 2
    assert tiny.manifest(Path(two.run))["status"] == "finished"
    assert (Path(two.run) / "report.html").exists()


@pytest.mark.parametrize("stage", ["sft", "dpo", "kto", "reward", "ppo"])
def test_two_processes_resume_exactly(stage: str, make: Make) -> None:
    """Each draws its own dropout, and goes on with it; one that is asked to stop stops both at the same step."""
    sparing = {"rollout.heldout_prompts": 2, "training.evaluate_every_steps": None, "training.save_every_steps": None}
    changes = {**tiny.UNGUARDED, **sparing} if stage == "ppo" else {}
    whole, cut = make(stage, "whole", changes), make(stage, "cut", changes)
    assert together(lambda rank: tiny.train(whole)) == [0, 0]

    def stopping(rank: int) -> None:
        real = Loop.__post_init__

        def asked(loop: Loop) -> None:
            real(loop)
            loop.stop_requested = lambda: rank == 1 and loop.position.step == 3

        Loop.__post_init__ = asked  # type: ignore[method-assign]
        with pytest.raises(Stopped, match="after step 3 of 10"):
            tiny.train(cut)

    assert together(stopping) == [0, 0]
    assert together(lambda rank: tiny.train(cut, resume=True)) == [0, 0]
    assert not tiny.differences(Path(whole.run), Path(cut.run))


def test_two_processes_stop_within_an_update(make: Make) -> None:
    """Between the same two of its optimiser steps, whichever of them was asked."""
    changes = {**tiny.UNGUARDED, "training.max_steps": 2, "reward.scale": "running", "ppo.max_kl": None}
    whole, cut = make("ppo", "whole", changes), make("ppo", "cut", changes)
    assert together(lambda rank: tiny.train(whole)) == [0, 0]

    def stopping(rank: int) -> None:
        real, asked = Loop.__post_init__, iter(range(100))

        def counted(loop: Loop) -> None:
            real(loop)
            loop.stop_requested = lambda: next(asked) == 5 and rank == 1

        Loop.__post_init__ = counted  # type: ignore[method-assign]
        with pytest.raises(Stopped, match="within step 2 of 2"):
            tiny.train(cut)

    assert together(stopping) == [0, 0]
    assert together(lambda rank: tiny.train(cut, resume=True)) == [0, 0]
    assert not tiny.differences(Path(whole.run), Path(cut.run))


def test_both_evaluate_a_run_that_is_resumed_after_its_last_step(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation exchanges values: the main process, which writes the results, cannot make it alone."""
    made = make("ppo", changes={**tiny.UNGUARDED, "training.max_steps": 1, "rollout.heldout_prompts": 2})

    def stopped(loop: Loop) -> None:
        raise Stopped("before the results are written")

    with monkeypatch.context() as patched, pytest.raises(Stopped, match="before the results"):
        patched.setattr(Loop, "_end", stopped)
        tiny.train(made)
    reported = tiny.metrics(Path(made.run))

    def counting(rank: int) -> None:
        real, calls = HeldoutAnswers.evaluate, []
        HeldoutAnswers.evaluate = lambda held: calls.append(rank) or real(held)  # type: ignore[func-returns-value, method-assign]
        tiny.train(made, resume=True)
        assert calls == [rank]

    assert together(counting) == [0, 0]
    assert tiny.metrics(Path(made.run)) == reported
    evaluation = json.loads((Path(made.run) / "evaluation.json").read_text())
    assert len(evaluation["heldout"]["responses"]) == 2


@pytest.mark.parametrize("failing", [0, 1])
def test_a_reward_that_fails_in_one_process_stops_both(failing: int, make: Make) -> None:
    """With the same error in both, and a manifest that says so."""
    made = make("ppo", changes={**tiny.UNGUARDED, "data.heldout_fraction": 0.0})

    def broken(rank: int) -> None:
        real = tiny.letters
        tiny.letters = lambda rows: 1 / 0 if rank == failing else real(rows)  # type: ignore[assignment]
        with pytest.raises(TrainingError, match="raised ZeroDivisionError"):
            tiny.train(made)

    assert together(broken) == [0, 0]
    assert tiny.manifest(Path(made.run))["status"] == "failed"


def test_a_reward_is_never_asked_about_nothing(make: Make) -> None:
    """A mean over no answers is an error in many functions."""
    changes = {**tiny.UNGUARDED, "data.heldout_fraction": 0.0, "training.batch_size": 1, "training.max_steps": 2}
    made = make("ppo", changes=changes)

    def asking(rank: int) -> None:
        real, sizes = tiny.letters, []
        tiny.letters = lambda rows: sizes.append(len(rows)) or real(rows)  # type: ignore[func-returns-value]
        tiny.train(made)
        assert 0 not in sizes

    assert together(asking) == [0, 0]


def test_ratios_are_of_all_processes_tokens(make: Make) -> None:
    changes = {**tiny.UNGUARDED, "training.max_steps": 2, "ppo.max_kl": None}
    one, two = make("ppo", "one", changes), make("ppo", "two", changes)
    tiny.train(one)
    assert together(lambda rank: tiny.train(two)) == [0, 0]
    alone, shared = ([row for row in tiny.metrics(Path(m.run)) if row["kind"] == "train"] for m in (one, two))
    for name in sorted(OWN):
        assert [row[name] for row in shared] == pytest.approx([row[name] for row in alone], rel=1e-4)


def test_fewer_processes_go_on_with_a_warning(make: Make) -> None:
    made = make("sft", changes={"training.max_steps": 4})

    def stopping(rank: int) -> None:
        real = Loop.__post_init__

        def asked(loop: Loop) -> None:
            real(loop)
            loop.stop_requested = lambda: loop.position.step == 2

        Loop.__post_init__ = asked  # type: ignore[method-assign]
        with pytest.raises(Stopped):
            tiny.train(made)

    assert together(stopping) == [0, 0]
    said = tiny.train(made, resume=True)
    assert "warning: 2 processes saved the checkpoint and 1 resume it" in said
    assert tiny.manifest(Path(made.run))["status"] == "finished"


def test_a_loss_that_is_not_finite_in_one_process_stops_both(make: Make) -> None:
    """Neither waits for the other for ever; the one that had it says which rows."""
    made = make("sft")

    def breaking(rank: int) -> None:
        real, calls = sft.token_nll, iter(range(100))

        def broken(logprobs: torch.Tensor) -> torch.Tensor:
            loss = real(logprobs)
            return loss * float("nan") if rank == 1 and next(calls) == 5 else loss

        sft.token_nll = broken  # type: ignore[assignment]
        with pytest.raises(TrainingError, match="the loss became nan at step"):
            tiny.train(made)

    assert together(breaking) == [0, 0]
    assert (Path(made.run) / "non-finite-batch-1.json").exists()


@pytest.mark.parametrize("ended", ["killed", "an error"])
def test_a_process_that_ends_ends_the_other(ended: str, make: Make) -> None:
    """Which waits for it in a sum over both; a manifest says so, and the run can be resumed."""
    made = make("sft")

    def ending(rank: int) -> None:
        real, calls = sft.token_nll, iter(range(100))

        def failing(*args: object) -> object:
            if rank == 1 and next(calls) == 3:
                if ended == "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise DataError("row 3 is broken", "Mend it.")
            return real(*args)  # type: ignore[arg-type]

        sft.token_nll = failing  # type: ignore[assignment]
        says = "another process of this launch has ended" if rank == 0 else "row 3 is broken"
        with pytest.raises(PrefineError, match=says):
            tiny.train(made)

    assert together(ending) == [0, -signal.SIGKILL if ended == "killed" else 0]
    assert tiny.manifest(Path(made.run))["status"] == "failed"


def test_both_are_refused_together(make: Make) -> None:
    """The main process alone looks at the folder; the other is told, and waits for nothing."""
    made = make("sft", changes={"training.max_steps": 1})
    tiny.train(made)

    def refused(rank: int) -> None:
        with pytest.raises(CheckpointError, match="already holds a run"):
            tiny.train(made)

    assert together(refused) == [0, 0]
    assert together(lambda rank: tiny.train(made, resume=True)) == [0, 0]  # finished: both say so and leave


@pytest.mark.slow
def test_torchrun(make: Make, tmp_path: Path) -> None:
    """The command that users scale with, in processes of its own (on a CPU `accelerate launch` starts one)."""
    made = make("dpo", changes={"training.max_steps": 2})
    command = ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port()), "-m", "prefine"]
    ended = subprocess.run(
        [sys.executable, "-m", *command, "dpo", tiny.written(made, tmp_path / "dpo.yaml")],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("done: model in") == 1
    assert tiny.manifest(Path(made.run))["device"]["processes"] == 2
    assert tiny.manifest(Path(made.run))["status"] == "finished"


# --- What processes exchange -----------------------------------------------------------------------------------------


def test_one_process_exchanges_nothing() -> None:
    alone = Processes.start(cpu=True)
    assert (alone.rank, alone.count, alone.is_main) == (0, 1, True)
    assert list(alone.share(range(5))) == [0, 1, 2, 3, 4]
    assert alone.sum({"a": 0.1, "b": math.inf}) == {"a": 0.1, "b": math.inf}, "not rounded to fp32"
    assert (alone.any(True), alone.any(False)) == (True, False)
    assert alone.gather("x") == ["x"]
    assert alone.gather_by_row({3: "x"}) == {3: "x"}
    assert alone.from_main("x") == "x"
    with pytest.raises(DataError, match="broken"):
        alone.all_or_raise(lambda: fail("broken"))


def fail(problem: str) -> int:
    raise DataError(problem, "Mend it.")


def test_three_processes_exchange_values() -> None:
    def exchange(rank: int) -> None:
        group = Processes.start(cpu=True)
        assert (group.rank, group.count, group.is_main) == (rank, 3, rank == 0)
        assert list(group.share(range(7))) == [[0, 3, 6], [1, 4], [2, 5]][rank]
        assert group.sum({"a": 2.0**rank, "b": -1.0}) == {"a": 7.0, "b": -3.0}
        assert (group.any(rank == 2), group.any(False)) == (True, False)
        assert group.gather({"rank": rank}) == [{"rank": 0}, {"rank": 1}, {"rank": 2}]
        assert group.gather_by_row({5 - rank: rank}) == {5: 0, 4: 1, 3: 2}
        assert group.from_main(f"of {rank}") == "of 0"
        assert group.all_or_raise(lambda: rank) == rank
        with pytest.raises(DataError, match="broken in 1"):
            group.all_or_raise(lambda: fail(f"broken in {rank}") if rank > 0 else 0)
        group.end()

    assert together(exchange, 3) == [0, 0, 0]
