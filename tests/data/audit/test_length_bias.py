"""Length bias: its share, the pairs with the largest difference, and a remedy that the method knows."""

from __future__ import annotations

from pathlib import Path

from prefine.data.audit.findings import Severity
from prefine.data.audit.length_bias import against_length
from tests.data.audit.writing import audited, found


def rows(longer: int, shorter: int) -> list[dict[str, str]]:
    """Pairs whose chosen answer is longer by 1, 2, … characters, then some whose chosen answer is shorter by 500."""
    return [
        *({"prompt": f"q{n}", "chosen": "a" * (n + 2), "rejected": "b"} for n in range(longer)),
        *({"prompt": f"s{n}", "chosen": "a", "rejected": "b" * 501} for n in range(shorter)),
    ]


def test_the_pairs_with_the_largest_difference_are_shown(tmp_path: Path) -> None:
    finding = found(audited(tmp_path, rows(30, 2)), "length_bias")
    assert finding.severity is Severity.HIGH
    assert [each.places for each in finding.examples] == [
        [f"{tmp_path}/rows.jsonl:{line}"] for line in (30, 29, 28, 27, 26)
    ]
    assert finding.examples[0].note == "chosen 31 characters, rejected 1"
    assert "dpo.beta: 5 together" in finding.remedy
    shorter = found(audited(tmp_path, rows(2, 30)), "length_bias")
    assert {each.note for each in shorter.examples} == {"chosen 1 characters, rejected 501"}
    assert list(found(audited(tmp_path, rows(15, 15)), "length_bias").examples) == []


def test_of_votes_the_longest_of_the_longer_side_are_shown(tmp_path: Path) -> None:
    votes = [
        *({"prompt": f"q{n}", "completion": "a" * (100 + n), "label": True} for n in range(30)),
        *({"prompt": f"q{n}", "completion": "b" * (1 + n), "label": False} for n in range(30)),
    ]
    finding = found(audited(tmp_path, votes), "length_bias")
    assert finding.severity is Severity.HIGH
    assert [each.note for each in finding.examples][:2] == ["up, 129 characters", "up, 128 characters"]
    assert "dpo" not in finding.remedy


def test_means_over_tokens_need_a_beta_of_their_own() -> None:
    assert "dpo.length_normalized: true and dpo.beta: 5 together" in against_length()
    assert "dpo.length_normalized: true and dpo.beta: 15 together" in against_length(pull=3)
