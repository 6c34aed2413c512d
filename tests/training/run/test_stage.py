"""A whole method that prefine does not have: what CONTRIBUTING.md says of a new method's stage holds.

Binary classifier optimisation (Jung et al. 2024, arXiv 2404.04656) learns from votes, with a reference, and with a
statistic that must survive a resume.
"""

from __future__ import annotations

import ast
import io
import json
import math
import random
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from prefine.data.tokens.store import TokenStore
from prefine.data.tokens.trees import PackedBatch, TokenTree, collate, microbatches
from prefine.errors import Stopped
from prefine.objectives.masked import per_sequence
from prefine.recipe.loading import RecipeSection
from prefine.recipe.stage import WritingRecipe
from prefine.records import Vote
from prefine.runs.atomic import JSON
from prefine.training.loop.contract import State, Steps, Sums
from prefine.training.loop.loop import Loop
from prefine.training.run.before import Before
from prefine.training.run.run_stage import run_stage
from prefine.training.run.session import Session
from prefine.training.run.stage import Objective, Stage
from prefine.training.stages.reference import reference_of_rows
from tests.training import tiny

# --- The recipe: prefine/recipe/bco.py --------------------------------------------------------------------------------


class BcoSection(RecipeSection):
    """Binary classifier optimisation."""

    beta: float = 0.1


class BcoRecipe(WritingRecipe):
    """Learns from votes."""

    bco: BcoSection = BcoSection()


# --- The loss: prefine/objectives/bco.py ------------------------------------------------------------------------------


def bco(reward: Tensor, up: Tensor, shift: float) -> Tensor:
    """-log sigma(+-(r - delta)), eq. 9: (B,) rewards beta log(pi / pi_ref), nats, and (B,) bool votes; (B,) losses."""
    return -logsigmoid(torch.where(up, reward - shift, shift - reward))


# --- The stage and its objective: prefine/training/stages/bco.py ------------------------------------------------------


class BcoStage(Stage[BcoRecipe, Vote]):
    """Learns which answers people liked."""

    name = "bco"
    record_type = Vote

    def start(self, session: Session[BcoRecipe]) -> BcoObjective:
        """Compute or read the reference."""
        return BcoObjective(session, reference_of_rows(session, "train"), reference_of_rows(session, "heldout"))


class BcoObjective(Objective[BcoRecipe]):
    """A vote for each answer, against the mean reward so far."""

    def __init__(self, session: Session[BcoRecipe], train: Tensor, heldout: Tensor) -> None:
        super().__init__(session)
        self._train, self._heldout = train, heldout
        self._shift = 0.0
        self.before: Before = Before(session.run.heldout_before)

    def loss(self, model: nn.Module, batch: PackedBatch) -> Sums:
        """A mean over votes."""
        losses, rewards = self._outcome(model, batch, self._session.prepared.train, self._train)
        return Sums(losses.sum(), "trees", {"reward": float(rewards.detach().sum())})

    def step(self, steps: Steps, trees: Sequence[TokenTree]) -> dict[str, float]:
        """One optimiser step; its mean reward, over all processes, moves the shift."""
        row = steps.optimise(trees)
        self._shift += 0.1 * (row["reward"] - self._shift)
        return {**row, "shift": self._shift}

    def state(self) -> State:
        """The shift."""
        return State({}, {"shift": self._shift})

    def load_state(self, state: State) -> None:
        """See Objective."""
        self._shift = state.json["shift"]

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Means over held-out votes."""
        store, limit = self._session.prepared.heldout, self._session.recipe.training.max_tokens_per_microbatch
        model = self._session.loaded.packed
        parts = [self._outcome(model, collate(run), store, self._heldout) for run in microbatches(store, limit)]
        losses, rewards = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        self.before.keep(losses.tolist(), write=self._session.processes.is_main)
        return {"loss": float(losses.mean()), "reward": float(rewards.mean())}

    def finish(self) -> dict[str, JSON]:
        """Held-out metrics before and after."""
        return {**self._session.before_and_after(), "count": len(self._session.prepared.heldout)}

    def _outcome(
        self, model: nn.Module, batch: PackedBatch, store: TokenStore, reference: Tensor
    ) -> tuple[Tensor, Tensor]:
        batch = batch.to(self._session.loaded.packed.device)
        sums = per_sequence(model(batch), batch.sequence, batch.sequences)
        up = torch.tensor([json.loads(store.record_json(row))["label"] for row in batch.rows], device=sums.device)
        reward = self._session.recipe.bco.beta * (sums - reference[list(batch.rows)].to(sums.device))
        return bco(reward, up, self._shift), reward


# --- Its tests --------------------------------------------------------------------------------------------------------


def recipe(folder: Path, model: Path, name: str = "run") -> BcoRecipe:
    """Nine steps on votes of which the better half of all answers gets thumbs up."""
    draw = random.Random(1)
    rows = [
        {"prompt": f"question {n}", "completion": f"{'good' if up else 'bad'} answer {n}", "label": up}
        for n in range(30)
        for up in [draw.random() < 0.5]
    ]
    values = {
        "run": str(folder / name),
        "model": {"name": str(model), "dtype": "float32", "device": "cpu"},
        "lora": {"r": 4, "alpha": 8, "dropout": 0.1},
        "data": {"train": str(tiny.write_rows(folder / "votes.jsonl", rows)), "heldout_fraction": 0.2},
        "training": {"batch_size": 4, "learning_rate": 1e-2, "max_steps": 9, "epochs": 3, "save_every_steps": 1},
        "report": {"samples": 0},
        "bco": {"beta": 0.2},
    }
    return BcoRecipe.model_validate(values)


def train(made: BcoRecipe, resume: bool = False) -> str:
    said = io.StringIO()
    run_stage(BcoStage(made), resume, Console(file=said))
    return said.getvalue()


def test_the_loss_by_hand() -> None:
    """Sigmoids of 1, -1 and 0."""
    found = bco(torch.tensor([1.5, 1.5, 0.5]), torch.tensor([True, False, False]), shift=0.5)
    assert found.tolist() == pytest.approx([math.log(1 + math.exp(-1)), math.log(1 + math.e), math.log(2)])


def test_a_method_of_ones_own_trains(model: Path, tmp_path: Path) -> None:
    """Policy and reference agree before the first step, so the loss is ln 2; it falls; the shift follows the reward."""
    made = recipe(tmp_path, model)
    said = train(made)
    rows = tiny.metrics(Path(made.run))
    before, *_, after = (row["loss"] for row in rows if row["kind"] == "heldout")
    assert before == pytest.approx(math.log(2), abs=1e-6)
    assert after < 0.9 * before
    steps = [row for row in rows if row["kind"] == "train"]
    shift = 0.0
    for row in steps:
        shift += 0.1 * (row["reward"] - shift)
        assert row["shift"] == pytest.approx(shift)
    manifest = tiny.manifest(Path(made.run))
    assert (manifest["stage"], manifest["status"]) == ("bco", "finished")
    assert "reward" in json.loads((Path(made.run) / "evaluation.json").read_text())["heldout"]["after"]
    assert "done: model in" in said


def test_a_method_of_ones_own_resumes_exactly(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after each of its first steps: the same bits as without a stop."""
    whole, parts = recipe(tmp_path, model, "whole"), recipe(tmp_path, model, "parts")
    train(whole)
    real = Loop._after_step

    def after(self: Loop) -> None:
        self.stop_requested = lambda: self.position.step < 4
        real(self)

    monkeypatch.setattr(Loop, "_after_step", after)
    for part in range(3):
        with pytest.raises(Stopped):
            train(parts, resume=part > 0)
    train(parts, resume=True)
    assert not tiny.differences(Path(whole.run), Path(parts.run))


def test_the_files_that_a_new_method_needs_are_where_contributing_says() -> None:
    """As they are for KTO."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    section = text.partition("## How to add a method")[2].partition("## What a change needs")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    named = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    assert len(named) > 15
    around = (ROOT, ROOT / "prefine", ROOT / "tests" / "training")
    assert not [name for name in named if not any((folder / name).is_file() for folder in around)]


# --- All stages -------------------------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[3]
MODULES = sorted((ROOT / "prefine" / "training").rglob("*.py"))


def classes(*bases: str) -> dict[str, ast.ClassDef]:
    """Classes of prefine.training that are one of these, or whose first base is."""
    found = [node for module in MODULES for node in ast.walk(ast.parse(module.read_text("utf-8")))]
    named = [node for node in found if isinstance(node, ast.ClassDef)]
    return {
        node.name: node
        for node in named
        if node.name in bases or any(ast.unparse(base).partition("[")[0] in bases for base in node.bases)
    }


def methods(node: ast.ClassDef) -> dict[str, ast.FunctionDef]:
    return {part.name: part for part in node.body if isinstance(part, ast.FunctionDef)}


def own_fields(function: ast.FunctionDef) -> set[str]:
    """Attributes of self that a method sets."""
    return {
        node.attr
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self"
    }


def test_stages_do_not_change() -> None:
    found = classes("Stage")
    assert found.keys() == {"Stage", *(f"{stage}Stage" for stage in ("Sft", "Dpo", "Kto", "Orpo", "Reward", "Ppo"))}
    for name, node in found.items():
        later = {field for method, body in methods(node).items() if method != "__init__" for field in own_fields(body)}
        assert not later, f"{name} sets {later}"


def test_constructors_of_objectives_set_all_their_fields() -> None:
    found = classes("Objective", "PairObjective")
    stages = ("Sft", "Dpo", "Kto", "Orpo", "Reward", "Ppo")
    assert found.keys() == {"Objective", "PairObjective", *(f"{stage}Objective" for stage in stages)}
    for name, node in found.items():
        own = methods(node).get("__init__")
        first = set() if own is None else own_fields(own)
        later = {field for body in methods(node).values() for field in own_fields(body)}
        assert later <= first, f"{name} sets {later - first}"


def test_no_argument_or_result_of_a_stage_is_of_any_type() -> None:
    for name, node in classes("Stage", "Objective", "PairObjective").items():
        for method, body in methods(node).items():
            arguments = [*body.args.posonlyargs, *body.args.args, *body.args.kwonlyargs]
            types = [each.annotation for each in arguments] + [body.returns]
            said = [ast.unparse(each) for each in types if each is not None]
            assert not [each for each in said if re.search(r"\bAny\b", each)], f"{name}.{method}: {said}"
