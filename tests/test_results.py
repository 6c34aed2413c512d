"""The experiments of make results: an interrupted one can be continued, and figures of two settings do not mix."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import prefine
from benchmarks.alignment import sentiment, support
from benchmarks.alignment.__main__ import require_inputs
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
    """Padded on both sides, and with the text that ends a prompt in the answer; one prompt begins another one."""
    short, longer = [1, 2, 7, 8], [1, 2, 7, 8, 3, 7, 8]
    answer = [5, 7, 8, 6]
    assert sentiment.answer_after([0, 0, *longer, *answer, 0], [short, longer]) == answer
    assert sentiment.answer_after([0, 0, *short, 4], [short, longer]) == [4]
    with pytest.raises(ValueError, match="begins with none of the prompts"):
        sentiment.answer_after([0, 4, 4], [short, longer])


def test_missing_inputs_end_the_program_before_it_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFINE_DATA", raising=False)
    monkeypatch.delenv("PREFINE_TRL_PPO", raising=False)
    require_inputs(["support"])
    for part in ("harmless", "sentiment"):
        with pytest.raises(SystemExit, match=f"{part}: set PREFINE_DATA"):
            require_inputs(["support", part])


def test_the_judge_of_the_support_desk_sees_none_of_the_path_s_prompts(tmp_path: Path) -> None:
    own, judges = ([json.loads(line) for line in path.read_text().splitlines()] for path in support.split(tmp_path))
    assert len(own) + len(judges) == 320
    assert len(judges) == 107
    assert not {row["prompt"] for row in own} & {row["prompt"] for row in judges}
