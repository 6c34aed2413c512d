"""What a comparison asks; rows that are not used are counted by reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefine.errors import DataError
from prefine.evaluation.comparing.evaluate import evaluate
from prefine.evaluation.comparing.questions import from_files, read_demonstrations, read_pairs
from prefine.evaluation.comparing.request import EvaluationRequest
from tests.evaluation.comparing.test_evaluate import asked as asked
from tests.evaluation.comparing.test_evaluate import models as models
from tests.training import tiny

PAIR = {"prompt": "Hi", "chosen": "good", "rejected": "bad"}
TIE = {"prompt": "And?", "chosen": "a", "rejected": "b", "tie": True}
DOWN = {"prompt": "Hi", "completion": "no", "label": False}
UP = {"prompt": "Hi", "completion": "yes", "label": True}


def written(tmp_path: Path, *rows: dict[str, Any]) -> list[str]:
    return [str(tiny.write_rows(tmp_path / "rows.jsonl", list(rows)))]


def test_pairs_that_are_not_measured_are_counted(tmp_path: Path) -> None:
    found, left_out = read_pairs(written(tmp_path, PAIR, TIE, PAIR, {"prompt": "", "chosen": "a", "rejected": "b"}))
    assert [pair.chosen for pair in found] == ["good"]
    assert left_out.pop("a tie, which has no better answer") == left_out.pop("repeats an earlier row") == 1
    assert left_out.total() == 1  # the blank prompt
    with pytest.raises(DataError, match=r"pairs: .*has ties only\. Give pairs"):
        read_pairs(written(tmp_path, TIE))


def test_demonstrations_that_are_not_measured_are_counted(tmp_path: Path) -> None:
    found, left_out = read_demonstrations(written(tmp_path, UP, DOWN, UP))
    assert (len(found), left_out["repeats an earlier row"], left_out.total()) == (1, 1, 2)


def test_prompts_that_are_not_asked_are_counted(tmp_path: Path) -> None:
    rows = [{"prompt": "Hi"}, {"prompt": "Hi"}, {"prompt": "And?"}, {"prompt": 5}]
    found = from_files(written(tmp_path, *rows))
    assert len(found.prompts) == 2
    assert found.left_out.pop("repeats an earlier prompt, which is asked once") == 1
    assert found.left_out.total() == 1
    assert len(from_files(written(tmp_path, *rows), limit=1).left_out) == 2


def test_the_report_counts_them(asked: Callable[..., EvaluationRequest], tmp_path: Path) -> None:
    pairs = tiny.write_rows(tmp_path / "pairs.jsonl", [PAIR, TIE, PAIR])
    shown = tiny.write_rows(tmp_path / "shown.jsonl", [UP, UP])
    prompts = tiny.write_rows(tmp_path / "few.jsonl", [{"prompt": "Hi"}, {"prompt": "Hi"}])
    comparison, _ = evaluate(asked(prompts=(str(prompts),), pairs=(str(pairs),), demonstrations=(str(shown),)))
    assert comparison.prompts["left_out"] == {
        "repeats an earlier prompt, which is asked once": 1,
        "pairs: repeats an earlier row": 1,
        "pairs: a tie, which has no better answer": 1,
        "demonstrations: repeats an earlier row": 1,
    }
