"""Every example row in docs/data.md is read as the kind of record it stands under."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from prefine.data.records.convert import records_of
from prefine.data.records.layouts.table import SHAPES, shape_of
from prefine.data.records.layouts.trees import FLAT, read_flat
from prefine.records import Completion, Demonstration, Preference, Prompt, Vote

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


def examples(kind: Any) -> list[dict[str, Any]]:
    section = PAGE.split(f"### {kind.__name__}\n", 1)[1].split("\n## ", 1)[0].split("\n### ", 1)[0]
    blocks = re.findall(r"```jsonl\n(.*?)```", section, re.DOTALL)
    return [json.loads(line) for block in blocks for line in block.splitlines()]


@pytest.mark.parametrize("kind", [Preference, Vote, Demonstration, Prompt, Completion])
def test_examples_are_read_as_documented(kind: Any) -> None:
    rows = examples(kind)
    shown = set()
    for row in rows:
        shape = shape_of(row, kind)
        shown.add(str(shape))
        if shape is not None and shape.name == FLAT:
            continue  # read together, below
        (record,) = records_of(row, kind)
        assert type(record) is kind
        # A prompt keeps the row's other columns for reward functions; of other records these formats use every column.
        assert record.extra == ({name: row[name] for name in row if name != "prompt"} if kind is Prompt else {})
        if isinstance(record, Preference) and not record.tie and "parcel" in record.prompt[-1].content:
            assert "Lyon" in record.chosen or "A parcel" in record.chosen
    if kind is not Prompt:  # every other format can be read as a prompt, and is shown under its own name
        others = (*SHAPES[Preference], *SHAPES[Vote]) if kind is Demonstration else ()
        assert shown | set(map(str, others)) == {str(shape) for shape in SHAPES[kind]}


def test_the_tree_of_messages_gives_the_pair_and_the_demonstration() -> None:
    rows = [row for row in examples(Preference) if "message_id" in row]
    found = [record for node in read_flat(rows, Preference, "best_worst") for record in node.records]
    assert [(record.chosen, record.rejected) for record in found] == [("It left Lyon this morning.", "Please wait.")]
    (demonstration,) = [record for node in read_flat(rows, Demonstration, "best_worst") for record in node.records]
    assert demonstration.messages[-1].content == "It left Lyon this morning."
