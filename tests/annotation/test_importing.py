"""Rows of every accepted form as items."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefine.annotation.importing import import_items, items_of_comparison
from prefine.annotation.project import Project
from prefine.annotation.records import AnnotationItem, ProjectSettings
from prefine.comparisons.result import AnswerOf, AnswerRow
from prefine.errors import DataError


def file(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def short(item: AnnotationItem) -> tuple[str, str, list[tuple[str, str, str]]]:
    return item.name, item.prompt[-1].content, [(each.text, each.model, each.run) for each in item.answers]


def test_preference_pairs(tmp_path: Path) -> None:
    source = file(
        tmp_path / "pairs.jsonl",
        {"prompt": "Hi", "chosen": "good", "rejected": "bad", "id": "x"},
        {
            **{"prompt": [{"role": "user", "content": "Yo"}], "chosen": "1", "rejected": "2", "category": "chat"},
            **{"model": "m1", "rejected_model": "m2", "run": "r1", "rejected_run": "r2"},
        },
    )
    found = import_items([source], "compare")
    assert [short(each) for each in found.items] == [
        ("x", "Hi", [("good", "chosen", ""), ("bad", "rejected", "")]),
        ("", "Yo", [("1", "m1", "r1"), ("2", "m2", "r2")]),
    ]
    assert found.items[1].category == "chat"


def test_prompts_with_several_answers(tmp_path: Path) -> None:
    source = file(
        tmp_path / "rows.jsonl",
        {"id": 7, "prompt": "Hi", "answers": [{"text": "a", "model": "m", "run": "r"}, "b"], "category": "c"},
        {"prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}], "answers": ["a", "b"]},
        {"prompt": "Hi", "answers": ["a", 1]},
        {"prompt": [{"role": "assistant", "content": "U"}], "answers": ["a", "b"]},
        {"prompt": "Hi", "answers": ["same", "same"]},
        {"prompt": "Hi", "answers": ["a", "b", "c"]},
        {"prompt": "Hi", "answers": ["a", "\ud83d"]},
    )
    found = import_items([source], "compare")
    assert [short(each) for each in found.items] == [
        ("7", "Hi", [("a", "m", "r"), ("b", "answer 2", "")]),
        ("", "U", [("a", "answer 1", ""), ("b", "answer 2", "")]),
    ]
    assert found.items[0].category == "c"
    assert len(found.items[1].prompt) == 2
    assert found.left_out.total() == 6  # same answers count once as such, and once for the item
    assert len(import_items([source], "rank").items) == 3


def test_answers_of_several_files_are_joined_by_their_prompt(tmp_path: Path) -> None:
    sft = file(
        tmp_path / "sft.jsonl",
        {"prompt": "Hi", "completion": "s1", "id": "1"},
        {"prompt": "Yo", "completion": "s2"},
        {"prompt": "alone", "completion": "s3"},
    )
    dpo = file(
        tmp_path / "dpo.jsonl",
        {"prompt": "Yo", "completion": "d2", "model": "named", "run": "runs/d"},
        {"prompt": "Hi", "completion": "d1"},
    )
    found = import_items([sft, dpo], "compare")
    assert [short(each) for each in found.items] == [
        ("1", "Hi", [("s1", "sft", sft), ("d1", "dpo", dpo)]),
        ("", "Yo", [("s2", "sft", sft), ("d2", "named", "runs/d")]),
    ]
    assert found.left_out == {"has not 2 different answers": 1}


def test_each_answer_is_an_item_of_its_own_for_thumbs(tmp_path: Path) -> None:
    source = file(tmp_path / "pairs.jsonl", {"prompt": "Hi", "chosen": "good", "rejected": "bad", "id": "x"})
    assert [short(each)[::2] for each in import_items([source], "thumb").items] == [
        ("x/1", [("good", "chosen", "")]),
        ("x/2", [("bad", "rejected", "")]),
    ]


def test_an_evaluation(tmp_path: Path) -> None:
    def side(text: str) -> AnswerOf:
        return AnswerOf(text=text, tokens=1, ended=True)

    hi = [{"role": "user", "content": "Hi"}]
    rows = [
        AnswerRow(id="1", category="c", prompt=hi, candidate=side("new"), baseline=side("old")),
        AnswerRow(id="2", prompt=hi, candidate=side(" "), baseline=side("old")),
        AnswerRow(id="3", prompt=[*hi, {"role": "tool", "content": "1"}], candidate=side("a"), baseline=side("b")),
    ]
    found = items_of_comparison(rows, "runs/dpo", "runs/sft", "compare")
    assert [short(each) for each in found.items] == [
        ("1", "Hi", [("new", "runs/dpo", "runs/dpo"), ("old", "runs/sft", "runs/sft")])
    ]
    assert items_of_comparison(rows, "./runs/dpo/", "runs//sft", "compare").items == found.items
    endpoint = items_of_comparison(rows, "https://one.example/v1#m", "embedded:small", "compare").items[0]
    assert [each.model for each in endpoint.answers] == ["https://one.example/v1#m", "embedded:small"]
    assert found.left_out.total() == 3
    with pytest.raises(DataError, match="no prompt has two different answers"):
        items_of_comparison(rows[1:], "runs/dpo", "runs/sft", "compare")


def test_nothing_to_judge_is_refused_with_the_reasons(tmp_path: Path) -> None:
    source = file(tmp_path / "one.jsonl", {"prompt": "Hi", "completion": "alone"})
    with pytest.raises(DataError, match=r"no row gives an item of kind compare: has not 2 different answers \(1\)"):
        import_items([source], "compare")


def test_the_same_import_again_adds_nothing(tmp_path: Path) -> None:
    source = file(tmp_path / "pairs.jsonl", {"prompt": "Hi", "chosen": "good", "rejected": "bad"})
    with Project.create(tmp_path / "project.db", ProjectSettings()) as found:
        assert [found.add_items(import_items([source], "compare").items) for _ in range(2)] == [1, 0]
        assert found.progress().items == 1
