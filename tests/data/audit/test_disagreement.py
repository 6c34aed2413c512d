"""Agreement of annotators, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefine.data.audit.findings import Severity
from tests.data.audit.test_judgements import swapped
from tests.data.audit.writing import audited, found, pair


def test_pairs_of_votes_between_rows(tmp_path: Path) -> None:
    # Ten items with two votes each; the annotators differ on three of them.
    rows = [pair(n, annotator="a") for n in range(10)]
    rows += [swapped(pair(n, annotator="b")) if n < 3 else pair(n, annotator="b") for n in range(10)]
    audit = audited(tmp_path, rows)
    finding = found(audit, "disagreement")
    assert (finding.count, finding.of) == (3, 10)
    assert audit.checks.disagreement.agreement == pytest.approx(0.7)
    # 2e(1 - e) = 0.3
    assert finding.figures["error_rate"] == pytest.approx((1 - 0.4**0.5) / 2)
    assert finding.severity is Severity.MEDIUM


def test_votes_listed_in_one_row(tmp_path: Path) -> None:
    # Of three votes one pair agrees; strengths -2 and -1 agree, +1 does not.
    rows = [pair(n, individual_preference=[{"score": -2}, {"score": -1}, {"score": 1}]) for n in range(4)]
    finding = found(audited(tmp_path, rows), "disagreement")
    assert (finding.count, finding.of) == (8, 12)


def test_votes_for_1_and_2_disagree(tmp_path: Path) -> None:
    finding = found(audited(tmp_path, [pair(n, votes=[1, 2, 2, 2, 2]) for n in range(2)]), "disagreement")
    assert (finding.count, finding.of) == (8, 20)


def test_rows_without_annotators_say_nothing_about_agreement(tmp_path: Path) -> None:
    audit = audited(tmp_path, [pair(n % 12) for n in range(24)])
    assert found(audit, "disagreement").severity is Severity.UNCHECKED
    assert audit.checks.disagreement.agreement is None
