"""Optimiser steps: what weight decay applies to, that groups for it change no clipping, and how sums become means."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prefine.data.tokens.trees import PackedBatch, TokenTree
from prefine.recipe.dpo import DpoSection
from prefine.recipe.sections import TrainingSection
from prefine.recipe.sft import SftRecipe
from prefine.recipe.stage import StageRecipe
from prefine.training.loop.contract import Sums, Unit
from prefine.training.loop.optimiser_step import OptimiserStep, adamw
from prefine.training.loop.processes import Processes
from tests.training import tiny

Make = Callable[..., StageRecipe]


class Block(nn.Module):
    """A matrix with a bias, a norm, a norm whose weight is two-dimensional, an embedding and a critic."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(4, 3)
        self.linear = nn.Linear(3, 3)
        self.layer_norm = nn.LayerNorm(3)
        self.q_norm = nn.Module()
        self.q_norm.weight = nn.Parameter(torch.ones(2, 3))
        self.value_head = nn.Linear(3, 1)


def rate_of(name: str) -> float | None:
    return 0.5 if name.startswith("value_head.") else None


def test_norms_and_biases_do_not_decay() -> None:
    """A step without gradients but of zero: only decay moves weights, by (1 - rate * decay)."""
    module = Block()
    parameters = dict(module.named_parameters())
    optimizer = adamw(rate_of, parameters, TrainingSection(weight_decay=0.1, learning_rate=0.25), torch.device("cpu"))
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    kept = {"embed.weight": 0.975, "linear.weight": 0.975, "value_head.weight": 0.95}
    for name, parameter in parameters.items():
        assert torch.allclose(parameter, before[name] * kept.get(name, 1.0)), name


def test_groups_are_as_they_were_where_nothing_decays() -> None:
    """So that checkpoints of earlier releases go on."""
    optimizer = adamw(rate_of, dict(Block().named_parameters()), TrainingSection(), torch.device("cpu"))
    assert [len(group["params"]) for group in optimizer.param_groups] == [6, 2]
    assert all("clipped_with" not in group for group in optimizer.param_groups)


def test_what_decays_and_what_does_not_is_clipped_together(make: Make, tmp_path: Path) -> None:
    """With so small a decay that the weights are equal, a run with two groups equals one with one."""
    base = {"lora": None, "training.max_steps": 3, "report.samples": 0, "training.max_grad_norm": 0.01}
    norms = []
    for name, decay in (("one", 0.0), ("two", 1e-30)):
        made = make("sft", name, {**base, "training.weight_decay": decay})
        assert isinstance(made, SftRecipe)
        tiny.train(made)
        norms.append([row["grad_norm"] for row in tiny.metrics(Path(made.run)) if row["kind"] == "train"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


@pytest.mark.parametrize(
    ("given", "beta"),
    [
        ({}, 0.1),
        ({"loss": "hinge"}, 0.1),
        ({"loss": "robust", "label_smoothing": 0.1}, 0.1),
        ({"length_normalized": True}, 5.0),
        ({"loss": "ipo"}, 1.0),
        ({"loss": "simpo"}, 2.0),
        ({"loss": "simpo", "beta": 0.7}, 0.7),
        ({"loss": "ipo", "beta": 0.1}, 0.1),
    ],
)
def test_a_loss_has_its_papers_beta_where_the_recipe_sets_none(given: dict[str, object], beta: float) -> None:
    section = DpoSection.model_validate(given)
    assert section.beta == beta
    assert DpoSection.model_validate(section.model_dump()) == section


def test_a_margin_of_simpo_with_another_loss_is_refused() -> None:
    with pytest.raises(ValueError, match=r"simpo_margin is 0\.5 with loss 'ipo': only simpo uses it"):
        DpoSection(loss="ipo", simpo_margin=0.5)


# --- Means of a step -------------------------------------------------------------------------------------------------


def trees_of(*lengths: int) -> list[TokenTree]:
    """Trees with one answer each, of so many supervised tokens."""
    return [TokenTree((1,), (tuple(range(2, 2 + n)),), (None,), row) for row, n in enumerate(lengths)]


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    budget=st.integers(16, 60),
    unit=st.sampled_from(["trees", "tokens"]),
)
@settings(max_examples=50, deadline=None)
def test_sums_become_means_over_the_unit_whatever_the_split(lengths: list[int], budget: int, unit: Unit) -> None:
    """A loss of weight * token id: its mean and gradient by hand, over trees or tokens, in any microbatches."""
    weight = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def loss(model: nn.Module, batch: PackedBatch) -> Sums:
        ids = batch.targets.double().sum()
        return Sums(weight * ids, unit, {"ids": float(ids), "one": 1.0})

    section = TrainingSection(max_tokens_per_microbatch=budget, max_grad_norm=None)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    step = OptimiserStep(
        Processes.start(cpu=True), nn.Module(), {"weight": weight}, optimizer, section, loss, Path("unused")
    )
    trees = trees_of(*lengths)
    row = step(trees, 1)
    units = len(lengths) if unit == "trees" else sum(lengths)
    mean = sum(id for tree in trees for id in tree.answers[0]) / units
    assert row["ids"] == pytest.approx(mean)
    assert row["loss"] == pytest.approx(2 * mean)
    assert row["grad_norm"] == pytest.approx(mean)
    assert float(weight.detach()) == pytest.approx(2 - mean)
