"""The situation in several files: figures of all, and which files were read in part."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefine.advice import looking
from prefine.data.audit.facts import data_facts


def test_files_with_more_records_than_are_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = []
    for name, count in (("some.jsonl", 9), ("all.jsonl", 4)):
        rows = [{"prompt": f"q{n}", "completion": "a", "label": n < 5} for n in range(count)]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        names.append(str(tmp_path / name))
    monkeypatch.setattr(looking, "data_facts", lambda sources: data_facts(sources, most_records=4))
    situation = looking.look(names)
    assert (situation.votes, situation.thumbs_up) == (8, 8)
    assert situation.read_in_part == {names[0]: 4}
    assert (situation.at_least("votes"), situation.at_least("preferences")) == ("at least ", "")
