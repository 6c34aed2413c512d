"""What a run says on the console when it ends."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from prefine.report.facts import RunFacts, read_run
from prefine.report.summary import closing_lines


def test_a_run_ends_with_its_headline_its_intervals_and_its_warnings(dpo_run: Path) -> None:
    facts = read_run(dpo_run)
    lines = closing_lines(facts)
    assert lines[0] == (
        "result: Training moved the model towards the preferred answer in 84 % of 32 held-out pairs; it ranks the "
        "preferred answer first in 66 % (53 % before: no change shown)."
    )
    assert any(line.startswith("  Moved towards it: 27 of 32, 95 % interval 68–93 %") for line in lines)
    assert "warning: 9 rows were set aside; see quarantine.jsonl." in lines
    reward = dataclasses.replace(facts, manifest={"stage": "reward", "warnings": ["held-out pairs: 45 pairs. Few."]})
    assert not any("45 pairs" in line for line in closing_lines(reward))


def test_a_run_with_nothing_to_tell_has_a_line() -> None:
    empty = RunFacts(name="run", manifest={}, train=[], heldout=[], evaluation={}, samples=[])
    assert closing_lines(empty) == ["result: This run has recorded no results yet."]
