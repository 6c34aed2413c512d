"""Shallow cues, length bias and label noise on data whose truth is known."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from prefine.data.audit.findings import Severity
from tests.data.audit.writing import audited, found, text


def told(n: int, cue: float, flipped: float = 0.0, seed: int = 0) -> list[dict[str, Any]]:
    """Pairs in which a share `cue` has a telling word in the better answer, and a share `flipped` wrong labels."""
    draw = random.Random(seed)
    rows = []
    for number in range(n):
        better, worse = text(2 * number), text(2 * number + 1)
        if draw.random() < cue:
            better += " thorough"
        if draw.random() < flipped:
            better, worse = worse, better
        rows.append({"prompt": f"question {number}", "chosen": better, "rejected": worse})
    return rows


def test_a_telling_word_is_found(tmp_path: Path) -> None:
    audit = audited(tmp_path, told(600, cue=0.9))
    finding = found(audit, "shallow_cues")
    # Nine of ten pairs have the word; the rest is guessed.
    assert finding.figures["accuracy"] == pytest.approx(0.95, abs=0.04)
    assert finding.severity in (Severity.MEDIUM, Severity.HIGH)
    assert finding.figures["cues"][0]["word"] == "thorough"
    with_word = sum("thorough" in row["chosen"] for row in told(600, cue=0.9))
    assert (finding.figures["cues"][0]["with_better"], finding.figures["cues"][0]["with_worse"]) == (with_word, 0)


def test_without_a_cue_the_accuracy_is_chance(tmp_path: Path) -> None:
    audit = audited(tmp_path, told(600, cue=0.0))
    assert found(audit, "shallow_cues").figures["accuracy"] == pytest.approx(0.5, abs=0.08)
    assert found(audit, "shallow_cues").severity is Severity.NONE
    assert found(audit, "label_noise").severity is Severity.UNCHECKED


def test_flipped_labels_are_suspects(tmp_path: Path) -> None:
    rows = told(1_500, cue=1.0, flipped=0.06)
    audit = audited(tmp_path, rows)
    flipped = {line for line, row in enumerate(rows, start=1) if "thorough" in row["rejected"]}
    suspects = {line for _, line in audit.checks.cues.suspects()}
    assert len(suspects & flipped) >= 0.75 * len(flipped)
    assert len(suspects & flipped) >= 0.9 * len(suspects)
    assert audit.checks.cues.noise_at_most is not None
    assert len(flipped) / len(rows) <= audit.checks.cues.noise_at_most < 0.15


def test_rows_of_one_prompt_are_not_learned_and_predicted(tmp_path: Path) -> None:
    # The word tells by prompt, not in general: what holds for one prompt says nothing about another.
    rows = []
    for prompt in range(60):
        for number in range(10):
            seed = 20 * prompt + 2 * number
            better, worse = f"{text(seed)} p{prompt}q", text(seed + 1)
            rows.append({"prompt": f"question {prompt}", "chosen": better, "rejected": worse})
    finding = found(audited(tmp_path, rows), "shallow_cues")
    assert finding.figures["accuracy"] < 0.65


def test_votes(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"q{n}", "completion": text(n) + (" thorough" if n % 2 else ""), "label": bool(n % 2)}
        for n in range(400)
    ]
    audit = audited(tmp_path, rows)
    assert found(audit, "shallow_cues").figures["accuracy"] > 0.95
    assert found(audit, "shallow_cues").figures["cues"][0]["word"] == "thorough"
    assert found(audit, "vote_balance").says.startswith("50.0")


@pytest.mark.parametrize("prompts", [1, 300], ids=["one prompt", "no common words"])
def test_data_without_anything_to_learn_from(tmp_path: Path, prompts: int) -> None:
    rows = [{"prompt": f"q{n % prompts}", "chosen": f"{n} 1", "rejected": f"{n} 2"} for n in range(300)]
    assert found(audited(tmp_path, rows), "shallow_cues").severity is Severity.UNCHECKED


def test_length_bias_of_pairs(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"q{n}", "chosen": text(n, 9 if n % 10 else 3), "rejected": text(100 + n, 3 if n % 10 else 9)}
        for n in range(100)
    ]
    finding = found(audited(tmp_path, rows), "length_bias")
    assert (finding.count, finding.of, finding.severity) == (90, 100, Severity.HIGH)


def test_length_bias_of_votes_is_mann_whitney(tmp_path: Path) -> None:
    # Up: 3 and 9 words of one letter; down: 6: half of the comparisons are won.
    votes = [("x" * 3, True), ("x" * 9, True), ("x" * 6, False)] * 20
    rows = [{"prompt": f"q{n}", "completion": said, "label": up} for n, (said, up) in enumerate(votes)]
    finding = found(audited(tmp_path, rows), "length_bias")
    assert finding.figures["share"] == pytest.approx(0.5)
    assert finding.severity is Severity.NONE
