"""One loop over given trees with an optimiser that only writes gradients down: what a step computes, taken apart."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from prefine.data.tokens.trees import TokenTree
from prefine.models.loading.load import LoadedModel
from prefine.recipe.stage import StageRecipe
from prefine.runs.directory import RunDirectory, read_metrics
from prefine.training.display import Display
from prefine.training.loop.loop import new_loop
from prefine.training.loop.processes import Processes
from tests.training.tiny import stage_of


@dataclass
class Recorded:
    """Of each optimiser step: its mean loss, and its gradients by parameter name, before clipping."""

    losses: list[float] = field(default_factory=list)
    gradients: list[dict[str, Tensor]] = field(default_factory=list)


class VotedTrees(list[TokenTree]):
    """Trees of one answer each, with a vote on it, as a token store has them."""

    def __init__(self, trees: Sequence[TokenTree], labels: Sequence[bool]) -> None:
        super().__init__(trees)
        self._labels = labels

    def record_json(self, row: int) -> str:
        return json.dumps({"label": self._labels[row]})


class _Recorder(torch.optim.SGD):
    """Takes no step, so that all steps are of the same weights."""

    def __init__(self, parameters: dict[str, torch.nn.Parameter], into: Recorded) -> None:
        super().__init__(parameters.values(), lr=1.0)
        self._named = parameters
        self._into = into

    def step(self, closure: Any = None) -> None:
        self._into.gradients.append({name: p.grad.clone() for name, p in self._named.items() if p.grad is not None})


def learning_weights(loaded: LoadedModel, seed: int = 3) -> LoadedModel:
    """Random adapter weights: a fresh adapter's B is 0, and with it half of all gradients."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in loaded.trainable().values():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.1)
    return loaded


def record(made: StageRecipe, loaded: LoadedModel, trees: Sequence[TokenTree], folder: Path) -> Recorded:
    """Go once over the trees as the recipe's stage does."""
    processes = Processes.start(cpu=True)
    run = RunDirectory(folder)
    folder.mkdir()
    session: Any = SimpleNamespace(
        recipe=made,
        run=run,
        display=Display(Console(file=io.StringIO())),
        processes=processes,
        loaded=loaded,
        prepared=SimpleNamespace(train=trees, heldout=[], digests={"train": f"{folder}", "heldout": ""}),
        manifest={},
        checks=[],
        warnings=[],
    )
    recorded, parameters = Recorded(), loaded.trainable()
    model, optimizer = processes.accelerator.prepare(loaded.packed, _Recorder(parameters, recorded))
    objective = stage_of(made).start(session)
    loop = new_loop(
        processes=processes,
        model=model,
        parameters=parameters,
        optimizer=optimizer,
        trees=trees,
        section=made.training,
        objective=objective,
        guard_section=made.guards,
        rules=(),
        evaluates=False,
        run=run,
        display=session.display,
        began=0.0,
    )
    loop.run_to_end()
    loop.log.close()
    recorded.losses = [row["loss"] for row in read_metrics(run.metrics)]
    return recorded
