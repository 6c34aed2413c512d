"""The loop's own arithmetic: steps, learning rates, clipping; and a loss that is not finite, which stops it cleanly."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from prefine.errors import MissingDependencyError, TrainingError
from prefine.models.loading.load import load_model
from prefine.recipe.sections import LoraSection, ModelSection, TrainingSection
from prefine.recipe.stage import StageRecipe
from prefine.records import Demonstration
from prefine.training.loop.checkpoint import newest_valid
from prefine.training.loop.schedule import rows_of_step
from prefine.training.stages import sft
from prefine.training.tracking import trackers as tracking
from tests.training import tiny
from tests.training.stepping import learning_weights, record

Make = Callable[..., StageRecipe]
QUICK = {"report.samples": 0, "training.self_checks": False}


def rates(run: str) -> list[float]:
    return [row["learning_rate"] for row in tiny.metrics(Path(run)) if row["kind"] == "train"]


@pytest.mark.parametrize("warmup", [0.0, 0.25, 0.3])
@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_learning_rates_are_transformers_own(schedule: str, warmup: float, make: Make) -> None:
    changes = {**QUICK, "training.schedule": schedule, "training.warmup_fraction": warmup, "data.heldout_fraction": 0}
    made = make("sft", changes={**changes, "training.learning_rate": 0.02, "training.epochs": 1})
    tiny.train(made)
    found = rates(made.run)
    steps, rising = len(found), round(warmup * len(found))
    theirs: Any = {
        "cosine": lambda o: transformers.get_cosine_schedule_with_warmup(o, rising, steps),
        "linear": lambda o: transformers.get_linear_schedule_with_warmup(o, rising, steps),
        "constant": lambda o: transformers.get_constant_schedule_with_warmup(o, rising),
    }[schedule]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.02)
    scheduler, wanted = theirs(optimizer), []
    for _ in range(steps):
        wanted += scheduler.get_last_lr()
        optimizer.step()
        scheduler.step()
    assert found == pytest.approx(wanted, rel=1e-12, abs=1e-12)
    assert steps == 7
    # By hand: half way down, and up.
    assert found[0] == (0.02 if rising == 0 else 0.0)
    if rising == 2:
        assert found[1:3] == pytest.approx([0.01, 0.02])
    if (schedule, rising) == ("cosine", 0):
        assert found[3] == pytest.approx(0.02 * (1 + math.cos(math.pi * 3 / 7)) / 2)


@pytest.mark.parametrize(
    ("epochs", "max_steps", "steps"),
    [(1, None, 5), (2, None, 10), (0.5, None, 3), (2.2, None, 11), (0.01, None, 1), (3, 4, 4), (1, 9, 5)],
)
def test_steps_of_a_run(epochs: float, max_steps: int | None, steps: int, make: Make) -> None:
    """19 rows in steps of 4: 5 an epoch. 2.2 epochs are 11 steps, although 2.2 * 5 is a little more than 11."""
    made = make("sft", changes={**QUICK, "training.epochs": epochs, "training.max_steps": max_steps})
    tiny.train(made)
    train = [row for row in tiny.metrics(Path(made.run)) if row["kind"] == "train"]
    assert [row["step"] for row in train] == list(range(1, steps + 1))
    assert train[-1]["epoch"] == pytest.approx(steps / 5)


def test_an_epoch_takes_every_row_once_and_each_another_order() -> None:
    section = TrainingSection(batch_size=4)
    epochs = [[row for step in range(e * 5, e * 5 + 5) for row in rows_of_step(step, 19, section)] for e in range(2)]
    assert [sorted(rows) for rows in epochs] == [list(range(19))] * 2
    assert epochs[0] != epochs[1]
    assert rows_of_step(7, 19, section) != rows_of_step(7, 19, TrainingSection(batch_size=4, seed=1))


@given(st.integers(1, 200), st.integers(1, 40), st.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_no_step_is_of_a_ragged_rest(rows: int, batch_size: int, epoch: int) -> None:
    """33 rows in steps of 32 are 16 and 17, not 32 and 1: a step on one row would move the weights as far as any."""
    section, steps = TrainingSection(batch_size=batch_size), -(-rows // batch_size)
    parts = [rows_of_step(epoch * steps + within, rows, section) for within in range(steps)]
    sizes = sorted(map(len, parts))
    assert sorted(row for part in parts for row in part) == list(range(rows))
    assert sizes[-1] - sizes[0] <= 1
    assert sizes[-1] <= batch_size


def test_gradients_are_clipped_by_their_whole_norm(make: Make, model: Path, tmp_path: Path) -> None:
    loaded = learning_weights(
        load_model(ModelSection(name=str(model), dtype="float32", device="cpu"), LoraSection(r=4))
    )
    said = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    trees = [loaded.template.demonstration_tree(Demonstration.model_validate_json(json.dumps(said)), 0)]
    once = {"training.save_every_steps": None, "training.epochs": 1}
    free = record(make("sft", changes={**once, "training.max_grad_norm": None}), loaded, trees, tmp_path / "free")
    norm = torch.cat([g.flatten() for g in free.gradients[0].values()]).norm().item()
    for limit, scale in ((norm / 10, 0.1), (norm * 10, 1.0)):
        made = make("sft", changes={**once, "training.max_grad_norm": limit})
        clipped = record(made, loaded, trees, tmp_path / f"{scale}")
        for name, gradient in clipped.gradients[0].items():
            torch.testing.assert_close(gradient, free.gradients[0][name] * scale, rtol=1e-4, atol=1e-7)
    (logged,) = [json.loads(line)["grad_norm"] for line in (tmp_path / "0.1" / "metrics.jsonl").open()]
    assert logged == pytest.approx(norm, rel=1e-5)  # what is logged is the norm before clipping


def test_gradients_left_by_others_do_not_count(make: Make, model: Path, tmp_path: Path) -> None:
    """A probe of the model that runs backward before the first step must not change it."""
    loaded = load_model(ModelSection(name=str(model), dtype="float32", device="cpu"), LoraSection(r=4))
    said = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    trees = [loaded.template.demonstration_tree(Demonstration.model_validate_json(json.dumps(said)), 0)]
    made = make("sft", changes={"training.save_every_steps": None, "training.epochs": 1})
    clean = record(made, loaded, trees, tmp_path / "clean")
    for parameter in loaded.trainable().values():
        parameter.grad = torch.ones_like(parameter)
    left = record(made, loaded, trees, tmp_path / "left")
    assert all(torch.equal(gradient, left.gradients[0][name]) for name, gradient in clean.gradients[0].items())


def test_loading_leaves_no_gradients(model: Path) -> None:
    loaded = load_model(ModelSection(name=str(model), dtype="float32", device="cpu"), LoraSection(r=4))
    assert all(parameter.grad is None for parameter in loaded.packed.model.parameters())


BROKEN = {
    "loss": lambda loss: loss * math.nan,
    "loss that overflows": lambda loss: loss * 1e38 * 1e38,
    "gradient norm": lambda loss: loss + (loss - loss.detach()) * 1e30,
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_step_that_is_not_finite_stops_the_run_and_leaves_the_last_checkpoint(
    what: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch is dumped, the weights are not touched, and the run goes on once the cause is gone."""
    whole, broken = make("sft", "whole"), make("sft", "broken")
    tiny.train(whole)
    real, calls = sft.token_nll, []

    def breaking(logprobs: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        loss = real(logprobs)
        return BROKEN[what](loss) if len(calls) == 8 else loss

    with monkeypatch.context() as patched:
        patched.setattr(sft, "token_nll", breaking)
        with pytest.raises(TrainingError, match=rf"the {what.split()[0]}.* became (nan|inf) at step (\d)") as raised:
            tiny.train(broken)
    run = Path(broken.run)
    step = int(str(raised.value).split("at step ")[1][0])
    assert step > 1
    dump = json.loads((run / "non-finite-batch.json").read_text())
    rows = rows_of_step(step - 1, 19, broken.training)
    assert dump["step"] == step
    assert set(dump["rows"]) < set(rows) if "loss" in what else dump["rows"] == rows
    assert len(dump["input_ids"]) == (1 if "loss" in what else 2)
    manifest = tiny.manifest(run)
    assert manifest["status"] == "failed"
    assert manifest["ended_by"] == str(raised.value)
    checkpoint = newest_valid(run / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.step == step - 1
    tiny.train(broken, resume=True)
    assert not tiny.differences(Path(whole.run), run)


def test_heldout_metrics_that_are_not_finite_stop_the_run(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make("sft")
    monkeypatch.setattr(sft.SftObjective, "evaluate", lambda objective: {"loss": math.inf, "perplexity": 1.0})
    with pytest.raises(TrainingError, match="held-out metrics are not finite after step 0"):
        tiny.train(made)


def test_a_tracker_that_is_not_installed_is_told_before_anything_begins(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make("sft", changes={"training.trackers": ["wandb"]})
    real = tracking.importlib.util.find_spec
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None if name == "wandb" else real(name))
    with pytest.raises(MissingDependencyError, match=r"training.trackers: wandb is not installed. Run: pip install"):
        tiny.train(made)
    assert not Path(made.run).exists()
