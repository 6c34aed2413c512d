"""The rows that a plan counts are those that a run prepares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefine.data.prepare import Preparation
from prefine.data.reading.quarantine import Quarantine
from prefine.data.tokens.template import ChatTemplate
from prefine.planning.workload import counted_rows
from prefine.recipe.sections import DataSection
from prefine.records import Preference
from tests.training.tiny import make_tokenizer


@pytest.mark.parametrize("more", [{}, {"limit": 40}, {"limit": 40, "heldout_fraction": 0.4, "seed": 3}, {"limit": 900}])
def test_as_many_as_a_run_prepares(tmp_path: Path, more: dict[str, Any]) -> None:
    """Of data.limit rows some are held out."""
    source = tmp_path / "pairs.jsonl"
    rows = ({"prompt": f"Question {n}?", "chosen": "It left Lyon.", "rejected": "Please wait."} for n in range(120))
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = DataSection(train=str(source), **more)
    template = ChatTemplate(make_tokenizer())
    with Quarantine() as quarantine:
        made = Preparation(tmp_path, section, Preference, template, section.seed, quarantine).stores()
    found = counted_rows(Preference, section, template)
    assert made.heldout is not None
    assert (found.rows, found.heldout) == (len(made.train), len(made.heldout))
    assert found.heldout
