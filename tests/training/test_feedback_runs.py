"""A run on feedback is the run on a file of the same pairs; with other feedback it does not go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from prefine.cli.app import main
from prefine.errors import CheckpointError, Stopped
from prefine.feedback.store import FeedbackStore, NewEvent
from prefine.recipe.stage import StageRecipe
from tests.feedback.feedback_store import WITH_TEXTS, register
from tests.training import tiny
from tests.training.test_resume import stop_after

Make = Callable[..., StageRecipe]


def voted(path: Path, count: int) -> str:
    """A database in which people liked the chosen answers of so many pairs, and not the rejected ones."""
    with FeedbackStore(path, WITH_TEXTS) as store:
        for number, pair in enumerate(tiny.pairs(count)):
            asked = [{"role": "user", "content": pair["prompt"]}]
            for kind, answer in (("up", pair["chosen"]), ("down", pair["rejected"])):
                name = register(store, f"{number}-{kind}", answer, asked)
                store.record(NewEvent(name, kind, key=name))  # type: ignore[arg-type]
        store.record(
            NewEvent(register(store, "alone", "fine", [{"role": "user", "content": "Hm?"}]), "up", key="alone")
        )
    return str(path)


def test_a_run_on_feedback(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database, pairs = voted(tmp_path / "feedback.db", 20), tmp_path / "pairs.jsonl"
    with pytest.raises(SystemExit, match="0"):
        main(["feedback", "export", database, "--to", "preferences", "--out", str(pairs)])
    of_file = make("dpo", "file", {"data.train": str(pairs), "training.max_steps": 2})
    of_feedback = make("dpo", "feedback", {"data.train": database, "training.max_steps": 2})
    tiny.train(of_file)
    with monkeypatch.context() as patched:
        stop_after(1, patched)
        with pytest.raises(Stopped):
            tiny.train(of_feedback)
    tiny.train(of_feedback, resume=True)
    assert not tiny.differences(Path(of_file.run), Path(of_feedback.run))
    counts = tiny.manifest(Path(of_feedback.run))["data"]["train"]
    assert counts["left_out_reasons"] == {"thumb has no answer to the same conversation with the opposite thumb": 1}

    voted(tmp_path / "feedback.db", 21)
    with pytest.raises(CheckpointError, match="differ from those that this run started with"):
        tiny.train(of_feedback, resume=True)
