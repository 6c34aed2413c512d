"""Watching ends when the run ends, and Ctrl-C leaves the last picture."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import pytest
from rich.console import Console

from prefine.watching.follow import follow
from tests.watching.conftest import Going

Step = Callable[[], None]


def followed(going: Going, *steps: Step, terminal: bool = False) -> str:
    """What is shown while each look at the files is preceded by one of the steps."""
    waiting: Iterator[Step] = iter(steps)
    file = io.StringIO()
    console = Console(file=file, width=200, height=40, force_terminal=terminal)
    try:
        follow(going.path, console, sleep=lambda _: next(waiting)())
    finally:
        said = file.getvalue()
        followed.said = said  # type: ignore[attr-defined]
    return said


def end(going: Going) -> Step:
    return lambda: going.write(status="finished")


def test_a_log_gets_what_is_new_and_the_picture_at_the_end(going: Going) -> None:
    event = {"kind": "guard", "step": 22, "at_step": 22, "action": "warn", "words": "the KL was above 0.2"}

    def evaluated() -> None:
        going.step(22)
        going.add({"kind": "heldout", "step": 22, "loss": 0.5}, event)

    said = followed(going, lambda: going.step(21), evaluated, lambda: None, end(going))
    assert said.count("Direct preference optimisation") == 2
    middle = said.split("Direct preference optimisation")[1].splitlines()
    assert [line for line in middle if line.startswith(("step 2", "held-out at", "guard"))][-3:] == [
        "guard at step 22: the KL was above 0.2; warned",
        "step 22/40  loss 0.045",  # every second of 40 steps: 20 lines in all
        "held-out at step 22  loss 0.500",
    ]
    assert "finished" in said and "\x1b" not in said


def test_on_a_terminal_the_picture_changes(going: Going) -> None:
    said = followed(going, lambda: going.step(21), lambda: going.step(22), end(going), terminal=True)
    assert [f"step {number}/40" in said for number in (20, 21, 22)] == [True] * 3
    assert "\x1b[?25h" in said  # the cursor is there again


def test_ctrl_c_leaves_the_last_picture(going: Going) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        followed(going, lambda: going.step(21), interrupt, terminal=True)
    said: str = followed.said  # type: ignore[attr-defined]
    assert said.rstrip().splitlines()[-1].strip().endswith("0.512") and said.count("\x1b[?25l") == said.count(
        "\x1b[?25h"
    )


def test_a_run_that_has_ended_is_shown_once(going: Going) -> None:
    going.write(status="stopped")
    assert followed(going).count("step 20/40") == 1


def test_steps_repeated_after_a_roll_back_are_shown(going: Going) -> None:
    rows = (going.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)

    def rolled_back() -> None:
        (going.path / "metrics.jsonl").write_text("".join(rows[:10]), encoding="utf-8")
        going.add({"kind": "guard", "step": 10, "at_step": 20, "back_to_step": 10, "action": "roll_back", "words": "!"})

    said = followed(going, rolled_back, lambda: going.step(12), end(going))
    assert "guard at step 20: !; rolled the run back to step 10" in said
    assert "\nstep 12/40" in said.split("guard at step 20")[1]
