"""The situation in several files: figures of all, and which files were read in part."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefine.advice import looking
from prefine.advice.situation import ReadingOptions
from prefine.data.audit.facts import data_facts
from prefine.errors import DataError


def test_files_with_more_records_than_are_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = []
    for name, count in (("some.jsonl", 9), ("all.jsonl", 4)):
        rows = [{"prompt": f"q{n}", "completion": "a", "label": n < 5} for n in range(count)]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        names.append(str(tmp_path / name))
    monkeypatch.setattr(looking, "data_facts", lambda *given, **how: data_facts(*given, **how, most_records=4))
    situation = looking.look(names)
    assert (situation.votes, situation.thumbs_up) == (8, 8)
    assert situation.read_in_part == {names[0]: 4}
    assert (situation.at_least("votes"), situation.at_least("preferences")) == ("at least ", "")


def write(path: Path, *rows: dict[str, object]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_columns_that_look_like_answers_are_named(tmp_path: Path) -> None:
    name = write(tmp_path / "a.jsonl", *({"prompt": f"q{n}", "response": "a"} for n in range(3)))
    (sentence,) = looking.look([name]).not_read
    assert sentence.startswith(f"{name}: A column that looks like answers is not read: response (3 rows).")
    assert "--column completion=response" in sentence
    named = looking.look([name], options=ReadingOptions({"completion": "response"}))
    assert (named.demonstrations, named.prompts, named.not_read) == (3, 0, ())


def test_rows_of_another_kind_are_named(tmp_path: Path) -> None:
    pairs = [{"prompt": f"q{n}", "chosen": "a", "rejected": "b"} for n in range(3)]
    name = write(tmp_path / "a.jsonl", *pairs, {"prompt": "q", "completion": "a", "label": True})
    (sentence,) = looking.look([name]).not_read
    assert "the rows are 3 preferences and 1 votes. They are read as preferences: votes do not count" in sentence


def test_each_file_is_read_with_the_columns_that_it_has(tmp_path: Path) -> None:
    shown = write(tmp_path / "shown.jsonl", {"question": "q", "response": "a"})
    pairs = write(tmp_path / "pairs.jsonl", {"question": "q", "chosen": "a", "rejected": "b", "label": "x"})
    options = ReadingOptions({"prompt": "question", "completion": "response", "label": None})
    found = looking.look([shown, pairs], options=options)
    assert (found.demonstrations, found.pairs) == (1, 1)
    assert found.columns == {
        shown: {"prompt": "question", "completion": "response", "label": None},
        pairs: {"prompt": "question", "label": None},
    }
    with pytest.raises(DataError, match=r"data\.columns says completion: reply, and no row has a column reply"):
        looking.look([shown, pairs], options=ReadingOptions({"completion": "reply"}))


def test_lengths_are_those_of_each_kind_and_of_prompts_alone(tmp_path: Path) -> None:
    """Four characters a token, and five tokens a turn."""
    pairs = [
        write(tmp_path / f"{n}.jsonl", {"prompt": "q" * 40 * n, "chosen": "a" * 80, "rejected": "b"}) for n in (1, 2)
    ]
    asked = write(tmp_path / "asked.jsonl", {"prompt": "q" * 400})
    found = looking.look([*pairs, asked])
    assert found.longest_tokens == {"preferences": 50, "prompts": 105}
    assert found.longest_prompts == {"preferences": 25, "prompts": 105}
