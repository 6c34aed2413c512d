"""One picture of a run, at several widths and with hostile text."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from prefine.watching.frame import Frame
from prefine.watching.reading import RunFiles
from tests.report.conftest import write_dpo_run
from tests.report.test_page import HOSTILE
from tests.watching.conftest import Going


def drawn(path: Path, width: int = 100, *, encoding: str = "utf-8", **options: Any) -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, width=width, **options)
    console.print(Frame(console).draw(RunFiles(path).read()))
    file.flush()
    return file.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]


def test_a_run_that_is_going(going: Going) -> None:
    event = {"at_step": 12, "back_to_step": 10, "action": "roll_back", "words": "the KL was above 0.2"}
    going.add({"kind": "guard", "step": 12, **event})
    row = {"step": 20, "prompt": [{"role": "user", "content": "Why?"}], "response": "Because.", "score": 0.5}
    (going.path / "rollouts.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    said = drawn(going.path)
    assert said.startswith(f"running  {going.path} · Direct")
    assert "step 20/40" in said and "left about 40" in said and "50 tokens/s" in said
    assert "1.000 → 0.050" in said and "█▄▃▂▂▂" in said
    assert "  0  0.693" in said and " 20  0.512" in said
    assert "step 12: the KL was above 0.2; rolled the run back to step 10" in said
    assert "Why?  (step 20, reward 0.50)" in said and "\nBecause." in said


def test_a_finished_run_shows_its_result(tmp_path: Path) -> None:
    said = drawn(write_dpo_run(tmp_path / "dpo"), 120)
    assert "finished" in said and "took 6" in said and "90 steps" in said
    assert "Training moved the model towards the preferred answer in 84" in said
    assert "after training" in said and "held-out" in said


def test_before_the_first_step_and_after_an_error(tmp_path: Path) -> None:
    run = Going(tmp_path)
    run.write()
    assert "before the first step" in drawn(tmp_path)
    run.write(status="failed", ended_by="the disk is full")
    assert "ended with: the disk is full" in drawn(tmp_path)


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_lines_fit_the_terminal(going: Going, width: int) -> None:
    assert max(map(len, drawn(going.path, width, height=50).splitlines())) <= width


def test_a_console_without_unicode(going: Going) -> None:
    said = drawn(going.path, encoding="ascii")
    assert "1.000 -> 0.050" in said and "####" in said


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp932"])
def test_text_that_the_console_cannot_write_is_escaped(going: Going, encoding: str) -> None:
    said = "日本語 ü — 🙂"
    going.write(stage=said, model={"name": said}, status=said, ended_by=said)
    going.add({"kind": "guard", "step": 12, "at_step": 12, "action": said, "words": said})
    row = {"step": 20, "prompt": [{"role": "user", "content": said}], "response": said, "score": 0.5}
    (going.path / "rollouts.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    shown = drawn(going.path, 600, encoding=encoding)
    assert "\\U0001f642" in shown
    assert ("日本語" if encoding == "cp932" else "\\u65e5\\u672c\\u8a9e") in shown
    assert ("ü" if encoding == "cp1252" else "\\xfc") in shown
    frame = Frame(Console(file=io.TextIOWrapper(io.BytesIO(), encoding=encoding)))
    frame.line({"kind": said, "step": said}, RunFiles(going.path).read()).encode(encoding)


def test_hostile_text_stays_text(going: Going) -> None:
    said = " ".join(HOSTILE) + " [red]no markup[/red] [link=file:x]y[/link]"
    going.write(stage=said, model={"name": said}, status=said, ended_by=said)
    going.add({"kind": "guard", "step": 12, "at_step": 12, "action": said, "words": said})
    row = {"prompt": [{"role": "user", "content": said}], "before": said, "after": said}
    (going.path / "samples.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    shown = drawn(going.path, 600)
    assert "\x1b" not in shown and "\u202e" not in shown and "\0" not in shown
    assert "[red]no markup[/red]" in shown
