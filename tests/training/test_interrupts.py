"""Ctrl-C, SIGTERM, SIGHUP: the step is finished and saved, exit code 130, the last line is the command that goes on."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from prefine.data.prepare import Preparation
from prefine.recipe.stage import StageRecipe
from prefine.training.loop.loop import Loop
from prefine.training.run import run_stage as session
from prefine.training.stages import reference
from tests.training import tiny

pytestmark = pytest.mark.usefixtures("warm")

Make = Callable[..., StageRecipe]
LONG = {"training.epochs": 6, "training.save_every_steps": None, "training.evaluate_every_steps": None}


def going_on(output: str) -> list[str]:
    """The arguments of the command that the last line says goes on."""
    line = output.strip().splitlines()[-1]
    program, *arguments = shlex.split(line.partition("; to resume: ")[2])
    assert program == "prefine"
    assert arguments[-1] == "--resume"
    return arguments


@pytest.mark.slow
def test_the_real_command_is_stopped_and_goes_on(make: Make, tmp_path: Path) -> None:
    """A process of its own, a recipe with a space in its path and a --set, pasted back as the message says."""
    slow = {"training.epochs": 10}  # a checkpoint every step: there is time to press Ctrl-C
    whole, cut = make("dpo", "whole", slow), make("dpo", "cut", slow)
    tiny.train(whole)
    file = tiny.written(make("dpo", "elsewhere", slow), tmp_path / "my recipe.yaml")
    arguments = ["dpo", file, "--set", f"run={cut.run}"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "prefine", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        assert any("step 4/" in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        said, error = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "stopping after this step" in error
    assert "Traceback" not in error
    assert "of 50, all saved; to resume: prefine dpo" in error.splitlines()[-1]
    assert going_on(error) == [*arguments, "--resume"]
    assert tiny.manifest(Path(cut.run))["status"] == "stopped"
    code, said = tiny.Command(*going_on(error)).end()
    assert (code, "resuming after step" in said) == (0, True), said
    assert not tiny.differences(Path(whole.run), Path(cut.run))
    # The two processes' times are added up.
    assert tiny.manifest(Path(cut.run))["seconds"] > tiny.manifest(Path(cut.run))["training_seconds"] > 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_the_loop(number: signal.Signals, make: Make, tmp_path: Path) -> None:
    whole, cut = make("sft", "whole", LONG), make("sft", "cut", LONG)
    tiny.train(whole)

    def slowly() -> None:
        real = Loop._timed_step
        Loop._timed_step = lambda loop: time.sleep(0.05) or real(loop)  # type: ignore[method-assign, func-returns-value]

    command = tiny.Command("sft", tiny.written(cut, tmp_path / "cut.yaml"), prepare=slowly)
    command.wait_for("step 2/30")
    command.send(number)
    code, said = command.end()
    assert code == 130, said
    code, said = tiny.Command(*going_on(said)).end()
    assert code == 0, said
    assert not tiny.differences(Path(whole.run), Path(cut.run))


def test_a_second_signal_does_not_wait_for_the_step(make: Make, tmp_path: Path) -> None:
    """What was saved before is kept; the steps since are done again."""
    whole, cut = make("sft", "whole"), make("sft", "cut")
    tiny.train(whole)

    def interrupting() -> None:
        real, saves = Loop.save, iter(range(100))

        def saving(loop: Loop, **asked: bool) -> None:
            if next(saves) == 3:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
            real(loop, **asked)

        Loop.save = saving  # type: ignore[method-assign]

    code, said = tiny.Command("sft", tiny.written(cut, tmp_path / "cut.yaml"), prepare=interrupting).end()
    assert code == 130
    assert "interrupted; what was saved before is kept; to resume: prefine sft" in said.splitlines()[-1]
    assert tiny.manifest(Path(cut.run))["status"] == "stopped"
    code, said = tiny.Command(*going_on(said)).end()
    assert code == 0, said
    assert "resuming after step 3\n" in said
    assert not tiny.differences(Path(whole.run), Path(cut.run))


MOMENTS = {
    "while rows are prepared": (Preparation, "_add"),
    "during the reference pass": (reference, "per_sequence"),
    "while the result is saved": (session, "saved_weights"),
}


@pytest.mark.parametrize(
    ("moment", "number"), list(zip(MOMENTS, (signal.SIGTERM, signal.SIGHUP, signal.SIGINT), strict=True))
)
def test_a_signal_outside_the_loop(moment: str, number: signal.Signals, make: Make, tmp_path: Path) -> None:
    """No step to finish: it ends at once, says what it did, and the same command with --resume goes on."""
    short = {"training.max_steps": 2}
    whole, cut = make("dpo", "whole", short), make("dpo", "cut", short)
    tiny.train(whole)
    place, name = MOMENTS[moment]

    def interrupting() -> None:
        os.environ["PREFINE_CACHE"] = str(tmp_path / "own-cache")
        real = getattr(place, name)

        def deadly(*args: object, **kwargs: object) -> object:
            os.kill(os.getpid(), number)
            return real(*args, **kwargs)

        setattr(place, name, deadly)

    code, said = tiny.Command("dpo", tiny.written(cut, tmp_path / "cut.yaml"), prepare=interrupting).end()
    assert code == 130, said
    assert "Traceback" not in said
    before, after = (
        "interrupted before a step was saved; the run begins at its",
        "interrupted; what was saved before is kept",
    )
    assert (after if moment == "while the result is saved" else before) in said.splitlines()[-1]
    code, said = tiny.Command(*going_on(said)).end()
    assert code == 0, said
    assert not tiny.differences(Path(whole.run), Path(cut.run))
