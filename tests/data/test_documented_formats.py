"""Every example row in docs/data.md is read as the kind of record it stands under."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from prefine.data.convert import SHAPES, convert, shape_of
from prefine.records import Completion, Demonstration, Preference, Prompt, Vote

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


def examples(kind: Any) -> list[dict[str, Any]]:
    section = PAGE.split(f"### {kind.__name__}\n", 1)[1].split("\n## ", 1)[0].split("\n### ", 1)[0]
    blocks = re.findall(r"```jsonl\n(.*?)```", section, re.DOTALL)
    return [json.loads(line) for block in blocks for line in block.splitlines()]


@pytest.mark.parametrize("kind", [Preference, Vote, Demonstration, Prompt, Completion])
def test_examples_are_read_as_documented(kind: Any) -> None:
    rows = examples(kind)
    for row in rows:
        record = convert(row, kind)
        assert type(record) is kind
        # A prompt keeps the row's other columns for reward functions; of other records these formats use every column.
        assert record.extra == ({name: row[name] for name in row if name != "prompt"} if kind is Prompt else {})
    shown = {str(shape_of(row, kind)) for row in rows}
    if kind is not Prompt:  # every other format can be read as a prompt, and is shown under its own name
        pairs = {str(shape) for shape in SHAPES[Preference]} if kind is Demonstration else set()
        assert shown | pairs == {str(shape) for shape in SHAPES[kind]}
