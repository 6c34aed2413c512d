"""The experiments of make results: an interrupted one can be continued, and figures of two settings do not mix."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import prefine
from benchmarks.alignment import sentiment
from benchmarks.alignment.steps import require_settings


def test_a_training_that_was_interrupted_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(recipe: dict[str, Any], reward: object) -> SimpleNamespace:
        run = Path(recipe["run"])
        run.mkdir()  # prefine.ppo refuses a folder that holds a run
        (run / "manifest.json").write_text("{}")
        if len(calls) == 1:
            raise KeyboardInterrupt
        return SimpleNamespace(metrics=lambda kind: [])

    calls: list[int] = []
    monkeypatch.setattr(prefine, "ppo", lambda *given, **named: (calls.append(1), train(*given, **named))[1])
    with pytest.raises(KeyboardInterrupt):
        sentiment.ours(tmp_path, [], 0, "float32")
    assert sentiment.ours(tmp_path, [], 0, "float32") == {"metrics": []}


def test_figures_of_other_settings_are_refused(tmp_path: Path) -> None:
    for _ in range(2):
        require_settings(tmp_path, dtype="bfloat16", sizes=(1, 2))
    with pytest.raises(SystemExit, match="holds figures of other settings"):
        require_settings(tmp_path, dtype="float32", sizes=(1, 2))


def test_the_answer_is_what_follows_the_whole_prompt() -> None:
    """Padded on both sides, and with the text that ends a prompt in the answer; one prompt begins another one. The pad
    token ends turns, too, and is 0 in what TRL passes on.
    """
    pad, marker = 9, [7, 8]
    short, longer = [1, 2, pad, *marker], [1, 2, pad, *marker, 3, pad, *marker]
    answer = [5, *marker, 6]
    row = [0, 0, *(0 if each == pad else each for each in longer), *answer, 0]
    assert sentiment.answer_after(row, [short, longer], pad) == [*answer, 0]
    assert sentiment.answer_after([0, 0, *row[2:7], 4], [short, longer], pad) == [4]
    with pytest.raises(ValueError, match="begins with none of the prompts"):
        sentiment.answer_after([0, 4, 4], [short, longer], pad)
