"""Thumbs up and down, and ties, with examples of what there is little of."""

from __future__ import annotations

from pathlib import Path

from prefine.data.audit.findings import Severity
from tests.data.audit.writing import audited, found, pair


def test_the_rarer_votes_are_shown(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{n}", "completion": f"a{n}", "label": n != 17} for n in range(100)]
    finding = found(audited(tmp_path, rows), "vote_balance")
    assert (finding.count, finding.severity) == (1, Severity.HIGH)
    assert [(each.places, each.note) for each in finding.examples] == [([f"{tmp_path}/rows.jsonl:18"], "down")]
    even = found(audited(tmp_path, [row | {"label": n % 2 == 0} for n, row in enumerate(rows)]), "vote_balance")
    assert (even.severity, list(even.examples)) == (Severity.NONE, [])


def test_ties_are_shown(tmp_path: Path) -> None:
    tied = {"prompt": "q", "response_1": "one", "response_2": "two", "preferred": 0}
    finding = found(audited(tmp_path, [pair(1), pair(2), tied]), "ties")
    assert (finding.count, [each.places for each in finding.examples]) == (1, [[f"{tmp_path}/rows.jsonl:3"]])
    assert "one" in finding.examples[0].text
