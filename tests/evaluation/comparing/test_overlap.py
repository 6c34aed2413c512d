"""Warnings of prompts that a compared model was trained on."""

from __future__ import annotations

import shutil
from pathlib import Path

from prefine.data.prepare import open_stores
from prefine.evaluation.comparing.overlap import trained_on_warnings
from prefine.evaluation.comparing.questions import EvaluationPrompt, Questions, from_run, prompt_of_json
from prefine.evaluation.comparing.sides import named_side
from prefine.records import Message
from prefine.runs.directory import RunDirectory
from tests.training.conftest import data as data
from tests.training.conftest import finished as finished
from tests.training.conftest import model as model
from tests.training.conftest import sft_run as sft_run


def test_what_a_run_held_out_it_was_not_trained_on(sft_run: Path, model: Path) -> None:
    sides = {"candidate": named_side("candidate", str(sft_run)), "baseline": named_side("baseline", str(model))}
    held_out = from_run(sft_run)
    assert held_out is not None
    assert trained_on_warnings(sides, held_out) == []


def test_prompts_of_the_training_data_are_counted_for_each_run(sft_run: Path, model: Path, tmp_path: Path) -> None:
    """One prompt of the training data, the same with a system turn, and a new one. The candidate began with the run."""
    store = open_stores(RunDirectory(sft_run).data)[0]
    seen = prompt_of_json(store.record_json(0))
    system = Message(role="system", content="Be brief.")
    other = EvaluationPrompt("o", (Message(role="user", content="never seen"),))
    questions = Questions("q", [seen, EvaluationPrompt("s", (system, *seen.prompt)), other])
    sides = {"candidate": named_side("candidate", str(sft_run)), "baseline": named_side("baseline", str(model))}
    (warning,) = trained_on_warnings(sides, questions)
    assert warning.startswith(f"The candidate was trained on 1 of 3 prompts ({sft_run})")
    later = tmp_path / "later"
    shutil.copytree(sft_run, later)
    manifest = later / "manifest.json"
    manifest.write_text(manifest.read_text().replace(f'"name": "{model}"', f'"name": "{sft_run}"'))
    shutil.rmtree(RunDirectory(later).data)
    sides = {"candidate": named_side("candidate", str(model)), "baseline": named_side("baseline", str(later))}
    (warning,) = trained_on_warnings(sides, questions)
    assert warning.startswith(f"The baseline was trained on 1 of 3 prompts ({sft_run})")
