"""Leaks into held-out data."""

from __future__ import annotations

from pathlib import Path

from prefine.data.audit.findings import Severity
from tests.data.audit.writing import audited, dropped_lines, found, pair, text, written


def test_leaks_are_found_exactly_and_nearly(tmp_path: Path) -> None:
    held = written(tmp_path / "held.jsonl", [pair(100), pair(101)])
    shouted = {"prompt": pair(100)["prompt"].upper() + "!", "chosen": text(1), "rejected": text(2)}
    words = pair(101)["prompt"].split()
    near = {"prompt": " ".join([*words, "indeed"]), "chosen": text(3), "rejected": text(4)}
    rows = [pair(1), shouted, near, pair(2)]
    audit = audited(tmp_path, rows, heldout=[held])
    assert (found(audit, "leaks").count, found(audit, "near_leaks").count) == (1, 1)
    assert found(audit, "leaks").severity is Severity.HIGH
    assert found(audit, "near_leaks").examples[0].places == [f"{tmp_path}/rows.jsonl:3", f"{held}:2"]
    assert dropped_lines(audit) == {2: "its prompt is in the held-out data"}
    both = audited(tmp_path, rows, heldout=[held], near=True)
    assert set(dropped_lines(both)) == {2, 3}


def test_held_out_prompts_alone_are_enough(tmp_path: Path) -> None:
    held = written(tmp_path / "held.jsonl", [{"prompt": pair(1)["prompt"]}])
    assert found(audited(tmp_path, [pair(1), pair(2)], heldout=[held]), "leaks").count == 1


def test_without_held_out_data_leaks_are_not_checked(tmp_path: Path) -> None:
    assert found(audited(tmp_path, [pair(1)]), "leaks").severity is Severity.UNCHECKED
