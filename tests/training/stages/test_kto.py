"""Runs on votes: what is refused, what is warned of, and what a finished run records."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import prefine
from prefine.cli.app import main
from prefine.errors import DataError, RecipeError, TrainingError
from prefine.recipe.stage import StageRecipe
from prefine.runs.directory import RunDirectory
from prefine.training.stages import kto
from tests.training import tiny
from tests.training.test_feedback_runs import voted

Make = Callable[..., StageRecipe]
QUICK = {"training.max_steps": 2, "report.samples": 0, "training.save_every_steps": None}


def rows(ups: int, downs: int) -> list[dict[str, Any]]:
    return [
        {"prompt": f"question {number}", "completion": f"answer {number}", "label": number < ups}
        for number in range(ups + downs)
    ]


def on(path: Path, ups: int, downs: int) -> dict[str, Any]:
    """All of these votes are trained on."""
    return {
        **QUICK,
        "data.train": str(tiny.write_rows(path / "some.jsonl", rows(ups, downs))),
        "data.heldout_fraction": 0,
    }


def test_a_run_learns_what_people_like(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start the loss is half of each vote's weight and the baseline 0; each held-out vote is in the results."""
    made = make("kto", changes={"training.epochs": 6, "training.learning_rate": 3e-3, "kto.beta": 0.5})
    tiny.train(made)
    evaluations = [row for row in tiny.metrics(Path(made.run)) if row["kind"] == "heldout"]
    first, last = evaluations[0], evaluations[-1]
    assert first["loss"] == pytest.approx(0.5, abs=1e-6)
    assert first["kl_baseline"] == pytest.approx(0, abs=1e-4)
    assert last["loss"] < 0.49
    assert last["reward_up"] > last["reward_down"]
    found = json.loads(RunDirectory(Path(made.run)).evaluation.read_text())["heldout"]
    assert (found["unit"], found["count"]) == ("vote", len(found["votes"]))
    beta = 0.5
    for up, name in ((True, "reward_up"), (False, "reward_down")):
        shifts = [vote["shift"] for vote in found["votes"] if vote["up"] is up]
        assert last[name] == pytest.approx(beta * sum(shifts) / len(shifts), abs=1e-4)
    margins = [vote["after_margin"] for vote in found["votes"]]
    assert last["margin"] == pytest.approx(sum(margins) / len(margins), abs=1e-5)
    assert last["accuracy"] == pytest.approx(sum(margin > 0 for margin in margins) / len(margins))
    signed = [(1 if vote["up"] else -1) * beta * (vote["shift"] - last["kl_baseline"]) for vote in found["votes"]]
    assert margins == pytest.approx(signed, abs=1e-4)


def test_the_figures_of_a_step_are_means_over_each_kind_of_votes(make: Make) -> None:
    """share (r_up - beta z) - (1 - share) (r_down - beta z) is the margin, so they give the share of thumbs up."""
    changes = {"report.samples": 0, "training.max_steps": 4, "training.batch_size": 19, "lora.dropout": 0.0}
    made = make("kto", changes=changes)
    tiny.train(made)
    votes = json.loads(RunDirectory(Path(made.run)).evaluation.read_text())["heldout"]["votes"]
    ups = sum(vote["label"] for vote in tiny.votes(26)) - sum(vote["up"] for vote in votes)
    assert 3 < ups < 16
    steps = [row for row in tiny.metrics(Path(made.run)) if row["kind"] == "train"]
    for row in steps[2:]:
        z = 0.1 * row["kl_baseline"]
        share = (row["margin"] + row["reward_down"] - z) / (row["reward_up"] + row["reward_down"] - 2 * z)
        assert share == pytest.approx(ups / 19, abs=1e-3)


def test_without_a_baseline_none_is_computed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kto, "baseline_of_steps", lambda _: pytest.fail("computed"))
    made = make("kto", changes={**QUICK, "kto.loss": "apo_zero_unpaired", "training.batch_size": 1})
    run = prefine.kto(made, display=False)
    assert (run.stage, run.status) == ("kto", "finished")
    assert not any("kl_baseline" in row for row in run.metrics())


def test_references_come_from_the_cache(make: Make) -> None:
    tiny.train(make("kto", "first", QUICK))
    said = tiny.train(make("kto", "second", QUICK))
    for part in (
        "train: 19",
        "heldout: 7",
        "train, with answers of other prompts: 7",
        "heldout, with answers of other",
    ):
        assert f"reference log-probabilities of {part}" in said
    another = tiny.train(make("kto", "another", {**QUICK, "training.seed": 1}))
    assert "train, with answers of other prompts" not in another


def test_feedback_and_its_export_train_the_same_run(make: Make, tmp_path: Path) -> None:
    database, exported = voted(tmp_path / "feedback.db", 12), tmp_path / "votes.jsonl"
    with pytest.raises(SystemExit, match="0"):
        main(["feedback", "export", database, "--to", "votes", "--out", str(exported)])
    of_feedback = make("kto", "feedback", {**QUICK, "data.train": database})
    of_file = make("kto", "file", {**QUICK, "data.train": str(exported)})
    tiny.train(of_feedback)
    tiny.train(of_file)
    assert not tiny.differences(Path(of_feedback.run), Path(of_file.run))
    assert tiny.manifest(Path(of_feedback.run))["data"]["train"]["rows_in"] == 25


def test_one_vote_a_step_is_refused(make: Make, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"training.batch_size is 1 with kto.loss 'kto'.*set it to 2 or more"):
        make("kto", changes={"training.batch_size": 1})
    made = make("kto", changes={**on(tmp_path, 2, 3), "training.batch_size": 2})
    with pytest.raises(
        RecipeError, match=r"training.batch_size 2 with 5 training votes makes a step of one vote.*3 or"
    ):
        tiny.train(made)
    tiny.train(make("kto", "even", {**on(tmp_path, 2, 2), "training.batch_size": 2}))
    tiny.train(make("kto", "odd", {**on(tmp_path, 2, 3), "training.batch_size": 3}))
    with pytest.raises(RecipeError, match=r"with 1 training votes makes a step of one vote.*Add votes"):
        tiny.train(make("kto", "one", on(tmp_path, 1, 0)))


def test_votes_on_one_prompt_are_refused_but_without_a_baseline(make: Make, tmp_path: Path) -> None:
    votes = [{**row, "prompt": "question"} for row in rows(3, 3)]
    changes = {**on(tmp_path, 1, 1), "data.train": str(tiny.write_rows(tmp_path / "one.jsonl", votes))}
    with pytest.raises(RecipeError, match=r"in each of the 2 steps all prompts are equal.*apo_zero_unpaired"):
        tiny.train(make("kto", "refused", changes))
    tiny.train(make("kto", "unpaired", {**changes, "kto.loss": "apo_zero_unpaired"}))
    some = {**changes, "data.train": str(tiny.write_rows(tmp_path / "some.jsonl", [*votes, *rows(1, 0)]))}
    made = make("kto", "some", {**some, "training.batch_size": 4})
    tiny.train(made)
    (line,) = [line for line in tiny.manifest(Path(made.run))["warnings"] if "KL baseline" in line]
    assert "In 1 of 2 steps all prompts are equal" in line
    assert sum("kl_baseline" in row for row in tiny.metrics(Path(made.run)) if row["kind"] == "train") == 1


def test_a_held_out_part_of_one_vote_has_no_baseline(make: Make, tmp_path: Path) -> None:
    heldout = str(tiny.write_rows(tmp_path / "heldout.jsonl", [{**rows(1, 0)[0], "prompt": "another question"}]))
    made = make("kto", changes={**on(tmp_path, 3, 3), "data.heldout": heldout, "data.heldout_fraction": 0})
    tiny.train(made)
    (line,) = [line for line in tiny.manifest(Path(made.run))["warnings"] if "KL baseline" in line]
    assert "All held-out votes have the same prompt" in line
    found = tiny.metrics(Path(made.run))
    assert {row["kind"] for row in found if "kl_baseline" in row} == {"train"}


def test_a_weight_without_votes_is_refused_and_one_kind_of_votes_warned_of(make: Make, tmp_path: Path) -> None:
    changes = on(tmp_path, 6, 0)
    with pytest.raises(
        RecipeError, match=r"kto.undesirable_weight 2.0 has no effect, as no training vote is a thumb d"
    ):
        tiny.train(make("kto", "refused", {**changes, "kto.undesirable_weight": 2.0}))
    made = make("kto", changes=changes)
    tiny.train(made)
    assert any("All 6 training votes are thumbs up" in line for line in tiny.manifest(Path(made.run))["warnings"])


@pytest.mark.parametrize(
    ("ups", "downs", "weights", "advice"),
    [
        (
            12,
            4,
            {},
            "the first weigh 3 times as much. KTO's authors advise 1 to 1.33 times: set kto.undesirable_weight to 3.",
        ),
        (
            4,
            12,
            {},
            "the first weigh 0.33 times as much. KTO's authors advise 1 to 1.33 times: set kto.desirable_weight to 3.",
        ),
        (12, 4, {"kto.undesirable_weight": 3.0}, None),
        (6, 5, {}, None),
    ],
)
def test_unequal_sides_are_warned_of(
    ups: int, downs: int, weights: dict[str, float], advice: str | None, make: Make, tmp_path: Path
) -> None:
    made = make("kto", changes={**on(tmp_path, ups, downs), **weights, "training.max_steps": 1})
    tiny.train(made)
    warnings = "\n".join(tiny.manifest(Path(made.run))["warnings"])
    assert ("thumbs up and" in warnings) is (advice is not None)
    assert advice is None or advice in warnings


def test_pairs_are_refused_with_the_command_for_them(make: Make, data: Path) -> None:
    with pytest.raises(DataError, match="prefine dpo"):
        tiny.train(make("kto", changes={**QUICK, "data.train": str(data)}))


def test_a_wrong_reference_is_found_before_the_first_step(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    real = kto.reference_of_rows
    monkeypatch.setattr(kto, "reference_of_rows", lambda session, part: real(session, part) + 0.01)
    with pytest.raises(TrainingError, match=r"first log-ratio: -0.01, but 0 ±"):
        tiny.train(make("kto", changes=QUICK))
