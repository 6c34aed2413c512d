"""Two files of answers become the rows of a comparison."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefine.errors import DataError
from prefine.evaluation.comparing.answer_files import paired_answers


def answer(prompt: Any, completion: str, **fields: Any) -> dict[str, Any]:
    """A row of prefine generate."""
    return {"prompt": prompt, "completion": completion, "finish_reason": "stop", "tokens": 3, "logprob": -1.0, **fields}


def written(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_prompts_in_common_are_paired_in_any_order(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "two"}]
    ours = written(
        tmp_path / "dpo.jsonl",
        answer("one", "a1", id="x", category="easy", tokens=7, finish_reason="length"),
        answer(turns, " "),
        answer("alone", "a3"),
    )
    theirs = written(tmp_path / "sft.jsonl", answer(turns, "b2"), answer("one", "b1"))
    found = paired_answers(ours, theirs)
    assert [(row.id, row.category, row.candidate.text, row.baseline.text) for row in found.rows] == [
        ("x", "easy", "a1", "b1"),
        ("2", "", " ", "b2"),
    ]
    first, second = found.rows
    assert (first.candidate.tokens, first.candidate.ended, first.baseline.ended) == (7, False, True)
    assert (second.candidate.degenerate, second.baseline.degenerate) == ("blank", None)
    assert [(turn["role"], turn["content"]) for turn in second.prompt] == [("system", "Be brief."), ("user", "two")]
    assert found.left_out == {"answers of dpo.jsonl without one of the other file": 1}
    assert found.warnings == []


def test_several_answers_to_a_prompt_are_paired_in_order(tmp_path: Path) -> None:
    ours = written(tmp_path / "a.jsonl", *(answer("one", f"a{number}", id="x") for number in range(3)))
    theirs = written(tmp_path / "b.jsonl", *(answer("one", f"b{number}") for number in range(2)))
    found = paired_answers(ours, theirs)
    assert [(row.id, row.candidate.text, row.baseline.text) for row in found.rows] == [
        ("x", "a0", "b0"),
        ("x#2", "a1", "b1"),
    ]


def test_without_tokens_the_words_are_counted_and_that_is_said(tmp_path: Path) -> None:
    ours = written(tmp_path / "a.jsonl", {"prompt": "one", "completion": "two words"})
    found = paired_answers(ours, ours)
    assert found.rows[0].candidate.tokens == 2
    assert "words" in found.warnings[0]


def test_rows_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    ours = written(tmp_path / "a.jsonl", answer("one", "a"), answer("two", 3))  # type: ignore[arg-type]
    theirs = written(tmp_path / "b.jsonl", answer("one", "b"))
    found = paired_answers(ours, theirs)
    assert len(found.rows) == 1
    assert [(reason.startswith("a.jsonl: completion"), count) for reason, count in found.left_out.items()] == [
        (True, 1)
    ]


def test_files_without_a_prompt_in_common_are_refused(tmp_path: Path) -> None:
    ours = written(tmp_path / "a.jsonl", answer("one", "a"))
    with pytest.raises(DataError, match="no prompt in common"):
        paired_answers(ours, written(tmp_path / "b.jsonl", answer("two", "b")))
    with pytest.raises(DataError, match=r"none\.jsonl"):
        paired_answers(ours, tmp_path / "none.jsonl")
