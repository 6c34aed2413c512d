"""What a checkpoint of the loop holds, and how it is put back: everything that the rest of a run depends on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from prefine.errors import CheckpointError
from prefine.models.checkpoint import Checkpoint, load_checkpoint, newest_valid
from prefine.models.training_state import optimizer_tensors, restore_optimizer, restore_rng
from prefine.rundir import RunDirectory
from prefine.training.contract import State

if TYPE_CHECKING:
    from prefine.training.loop import Loop

# What the names of a stage's own groups of tensors begin with in a checkpoint.
_STAGE = "stage."


@dataclass
class Position:
    """Where a run is; saved with every checkpoint.

    Attributes:
        step: optimiser steps done.
        tokens: tokens of all rows so far, each prompt counted once.
        seconds: training time so far.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0


def contents(loop: Loop, generators: Sequence[tuple[Any, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A checkpoint's groups of tensors and its JSON, with every process's random states."""
    groups, stage = loop.stage.state()
    optimizer, optimizer_state = optimizer_tensors(loop.optimizer)
    tensors = {
        "weights": {name: p.detach() for name, p in loop.parameters.items()},
        "optimizer": optimizer,
        **({"best": loop.watch.best_weights} if loop.watch.best_weights else {}),
        **{f"rng.{rank}": own for rank, (own, _) in enumerate(generators)},
        **{f"{_STAGE}{name}": own for name, own in groups.items()},
    }
    state = {
        "position": vars(loop.position),
        "wall_seconds": loop.wall_seconds,
        "scheduler": loop.scheduler.state_dict(),
        "watch": loop.watch.state(),
        "guards": loop.guards.state(),
        "stage": stage,
        "optimizer": optimizer_state,
        "rng": [own for _, own in generators],
    }
    return tensors, state


def checkpoint_to_resume(run: RunDirectory, within: Path) -> Checkpoint | None:
    """The newest valid checkpoint of the run, between its steps or within one; None if it has none.

    Raises:
        CheckpointError: there are some, but none is valid.
    """
    checkpoint, inner = (newest_valid(folder, run.run_id) for folder in (run.checkpoints, within))
    if inner is not None and (checkpoint is None or inner.step >= checkpoint.step):
        checkpoint = inner
    if checkpoint is None and any(any(folder.glob("step-*")) for folder in (run.checkpoints, within)):
        raise CheckpointError(
            f"{run.checkpoints} holds checkpoints, but none is valid (see the warnings above)",
            "Bring one back from a copy, or delete that folder to begin again from the first step.",
        )
    return checkpoint


def put_back(loop: Loop, checkpoint: Checkpoint) -> dict[str, Any]:
    """Put all of it where it was; returns the checkpoint's JSON.

    Raises:
        CheckpointError: it holds other weights than this run trains, or cannot be read.
    """
    tensors, state = load_checkpoint(checkpoint)
    try:
        _put_back(loop, checkpoint, tensors, state)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise CheckpointError(
            f"{checkpoint.path} does not hold what this run saves ({type(error).__name__}: {error})",
            "It is of another version of prefine, or of other libraries: go on with those, or start a new run.",
        ) from error
    return state


def mend_metrics(loop: Loop, state: Mapping[str, Any]) -> None:
    """Say so, and bring held-out figures back, if metrics that the checkpoint knew of were lost or changed."""
    if loop.metrics is not None and loop.metrics.mend(state["metrics"]):
        loop.display.say(
            f"warning: {loop.run.metrics} lost lines or was changed: held-out figures are as the checkpoint holds "
            "them, and figures of steps that were lost stay lost"
        )


def _put_back(
    loop: Loop, checkpoint: Checkpoint, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
) -> None:
    if set(tensors["weights"]) != set(loop.parameters):
        raise CheckpointError(
            f"{checkpoint.path} holds other weights than this recipe trains",
            "Resume with the recipe and model the run began with.",
        )
    restore_optimizer(loop.optimizer, tensors["optimizer"], state["optimizer"])  # first: it checks all shapes
    with torch.no_grad():
        for name, parameter in loop.parameters.items():
            parameter.copy_(tensors["weights"][name])
    loop.scheduler.load_state_dict(state["scheduler"])
    loop.watch.restore(state["watch"], tensors.get("best", {}))
    loop.guards.restore(state["guards"])
    found = {name.removeprefix(_STAGE): dict(group) for name, group in tensors.items() if name.startswith(_STAGE)}
    loop.stage.load_state(State(found, state["stage"]))
    _restore_rng(loop, tensors, state["rng"])
    loop.position = Position(**state["position"])


def _restore_rng(loop: Loop, tensors: Mapping[str, Mapping[str, Tensor]], states: Sequence[Mapping[str, Any]]) -> None:
    processes = loop.processes.count
    if len(states) != processes:
        loop.display.say(
            f"warning: {len(states)} processes saved the checkpoint and {processes} go on: the result will not be "
            "equal to that of an uninterrupted run"
        )
    rank = loop.processes.rank % len(states)
    restore_rng(tensors[f"rng.{rank}"], states[rank])
