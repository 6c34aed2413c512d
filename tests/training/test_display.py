"""What a run shows: a bar on a terminal, about twenty lines in a log, nothing from any process but the main one."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from rich.console import Console

from prefine.recipe.stage import StageRecipe
from prefine.training.display import Display, forget_peak_memory, peak_memory_gb
from prefine.training.pace import Pace
from prefine.training.stages.dpo import run_dpo
from prefine.training.stages.sft import run_sft
from tests.training import tiny

Make = Callable[..., StageRecipe]
ROW = {"loss": 0.6931, "accuracy": 0.5, "tokens_per_s": 1234.0, "peak_memory_gb": 2.0}


class Clock:
    """Seconds that pass when a test says so."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_a_log_has_the_first_the_last_and_about_twenty_lines() -> None:
    """Each says how long it still takes: 200 steps of 1.5 s."""
    said, now = io.StringIO(), Clock()
    display = Display(Console(file=said), clock=now)
    with display.progress(200, 0):
        for step in range(1, 201):
            now.seconds += 1.5
            display.step(step, ROW)
    lines = said.getvalue().splitlines()
    assert lines[0] == "step 1/200  loss 0.6931  left 0:04:58  accuracy 0.50  1,234 tokens/s  2.0 GB peak"
    assert [line.split()[1] for line in lines[1:]] == [f"{step}/200" for step in range(10, 201, 10)]
    assert "left 0:02:30" in lines[10]
    assert "left 0:00:00" in lines[-1]


def test_a_slow_run_says_something_every_two_minutes() -> None:
    said, now = io.StringIO(), Clock()
    display = Display(Console(file=said), clock=now)
    with display.progress(2000, 0):
        for step in range(1, 8):
            now.seconds += 60
            display.step(step, ROW)
    assert [line.split()[1] for line in said.getvalue().splitlines()] == [f"{step}/2000" for step in (1, 3, 5, 7)]


def test_what_was_done_before_a_resume_says_nothing_about_the_pace() -> None:
    now = Clock()
    pace = Pace(200, 100, now)
    assert pace.seconds_left() is None
    now.seconds = 10
    pace.reached(105)
    assert pace.seconds_left() == 95 * 2
    now.seconds = 13
    assert pace.seconds_left() == 95 * 2 - 3
    pace.reached(90)  # a guard took it back
    assert pace.seconds_left() is None
    now.seconds = 14
    pace.reached(91)
    assert pace.seconds_left() == 109


def test_a_log_says_when_another_pass_runs_and_how_long_it_takes() -> None:
    said, now = io.StringIO(), Clock()
    display = Display(Console(file=said), clock=now)
    with display.progress(1800, 0, "reference pass"):
        for done in (300, 600, 900):
            now.seconds += 100
            display.advance(done)
    assert said.getvalue().splitlines() == ["reference pass: 1,800 rows", "reference pass 600/1,800  left 0:06:40"]


@pytest.mark.parametrize("width", [80, 100, 160])
def test_the_bar_fits_the_terminal_with_step_loss_and_time_left_first(width: int) -> None:
    """A run of five reward sources has facts for 250 columns."""
    sources = {f"score/reward model {n}": 4.0 for n in range(5)} | {f"share/reward model {n}": 1.0 for n in range(5)}
    row = {"kl_k3": 0.2, "response_tokens": 90.0, "score": 1.0, **ROW, **sources}
    for figures, first in ((ROW, "loss 0.6931"), (row, "score 1.000")):
        said, now = io.StringIO(), Clock()
        console = Console(file=said, force_terminal=True, width=width, color_system=None, legacy_windows=False)
        display = Display(console, clock=now)
        with display.progress(12_000, 0):
            now.seconds = 36
            display.step(12, figures)
        lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\r", said.getvalue()))
        assert max(map(len, lines)) <= width
        assert any(line.startswith(f"training  12/12,000  {first}  left 9:59:24  ") for line in lines)
        assert figures is row or ("GB peak" in said.getvalue()) == (width > 80)


def test_each_reward_source_is_shown_by_itself() -> None:
    """Of one source that is taken as it is the sum says all."""
    said = io.StringIO()
    row = {"loss": 0.1, "kl_k3": 0.2, "response_tokens": 9.0, "tokens_per_s": 5.0, "peak_memory_gb": 1.0, "score": 1.0}
    display = Display(Console(file=said))
    display.step(1, {**row, "score/m:a": 1.0, "share/m:a": 1.0})
    display.step(1, {**row, "score/m:a": 4.0, "score/m:b": -2.0, "share/m:a": 2.0, "share/m:b": -1.0})
    display.heldout(1, {"score": 0.0, "score/m:a": 4.0, "share/m:a": 0.0})
    alone, both, heldout = re.sub(r"left \S+  ", "", said.getvalue()).splitlines()
    assert "score 1.000  KL 0.200" in alone
    assert "score 1.000  m:a 4.000 (share 2.000)  m:b -2.000 (share -1.000)  KL 0.200" in both
    assert heldout == "held-out at step 1:  score 0  m:a 4.000 (share 0.000)"


def test_a_run_on_a_terminal_shows_a_bar(make: Make) -> None:
    made = make("dpo", changes={"training.epochs": 1})
    said = io.StringIO()
    run_dpo(made, False, Console(file=said, force_terminal=True, width=120))  # type: ignore[arg-type]
    assert "training" in said.getvalue()
    assert "5/5" in said.getvalue()
    assert "reference" in said.getvalue()
    assert "held-out at step 5" in said.getvalue()
    assert tiny.manifest(Path(made.run))["status"] == "finished"


def test_a_piped_run_says_when_its_reference_pass_runs(make: Make) -> None:
    made = make("dpo", changes={"training.max_steps": 2})
    said = io.StringIO()
    run_dpo(made, False, Console(file=said))  # type: ignore[arg-type]
    assert "\nreference pass: " in said.getvalue()
    assert re.search(r"\nstep 1/2  loss \S+  left \d:\d\d:\d\d  ", said.getvalue())


def test_other_processes_say_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    said = io.StringIO()
    display = Display(Console(file=said, force_terminal=True), enabled=False)
    with display.progress(2, 0):
        display.step(1, ROW)
        display.advance(1)
        display.heldout(1, {"loss": 1.0})
        display.say("something")
        display.say_from_signal("something")
    assert said.getvalue() == ""
    assert capfd.readouterr().err == ""


class Broken(io.StringIO):
    """A console that takes nothing."""

    encoding = "latin-1"

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error

    def flush(self) -> None:
        raise self.error


@pytest.mark.parametrize("error", [OSError(28, "full"), BrokenPipeError(32, "closed"), ValueError("closed file")])
def test_a_console_that_takes_nothing_ends_no_run(error: Exception, make: Make) -> None:
    """The disk is full, `| head` has left, the terminal or the file was closed: the metrics are on disk."""
    made = make("sft", changes={"training.max_steps": 2})
    run_sft(made, False, Console(file=Broken(error)))  # type: ignore[arg-type]
    assert tiny.manifest(Path(made.run))["status"] == "finished"


def test_characters_that_a_console_lacks_are_shown_as_escapes() -> None:
    raw = io.BytesIO()
    display = Display(Console(file=io.TextIOWrapper(raw, encoding="latin-1", write_through=True)))
    display.say("Größe: ж")
    assert raw.getvalue().decode("latin-1").startswith("Gr")
    assert "\\u0436" in raw.getvalue().decode("latin-1")


def test_the_peak_of_memory_does_not_fall_when_memory_is_freed() -> None:
    before = peak_memory_gb(torch.device("cpu"))
    assert 0.05 < before < 100
    block = torch.ones(25_000_000)
    high = peak_memory_gb(torch.device("cpu"))
    assert high > psutil.Process().memory_info().rss / 1e9 - 0.01  # Linux counts in batches of pages
    del block
    assert peak_memory_gb(torch.device("cpu")) > high - 0.01


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="only Linux counts a peak anew")
def test_the_peak_of_a_second_run_is_not_that_of_the_first() -> None:
    cpu = torch.device("cpu")
    block = torch.ones(100_000_000)  # 0.4 GB
    high = peak_memory_gb(cpu)
    del block
    forget_peak_memory(cpu)
    assert peak_memory_gb(cpu) < high - 0.3
