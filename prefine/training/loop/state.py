"""The state of a training run: everything that the rest of the run depends on."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from prefine.training.loop.contract import LoopObjective, State
from prefine.training.loop.early_stopping import EarlyStopping
from prefine.training.loop.guards import Guards
from prefine.training.loop.processes import Processes
from prefine.training.loop.torch_state import optimizer_tensors, restore_optimizer, restore_rng, rng_tensors

# Prefix of the objective's groups of tensors in a checkpoint.
_OBJECTIVE = "stage."


@dataclass
class Position:
    """The position of a run.

    Attributes:
        step: steps done.
        tokens: tokens of all rows so far; a prompt counts once, however many answers it has.
        seconds: time spent in steps so far, s.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0


@dataclass
class TrainingState:
    """The state of a run that a checkpoint stores, including the random generators of every process. Stateful.

    Attributes:
        parameters: trainable parameters by name.
        optimizer: as accelerate prepared it.
        scheduler: the learning-rate schedule.
        early_stopping: the best held-out loss so far.
        guards: the guards with their counts.
        objective: the objective, which has its own state.
        processes: the processes that train together.
        began: when this process began the run, by time.perf_counter.
        position: the position of the run.
        seconds_before: wall-clock time of the parts of the run before this process, s.
    """

    parameters: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    early_stopping: EarlyStopping
    guards: Guards
    objective: LoopObjective
    processes: Processes
    began: float = field(default_factory=time.perf_counter)
    position: Position = field(default_factory=Position)
    seconds_before: float = 0.0

    @property
    def wall_seconds(self) -> float:
        """Wall-clock time of the run, s, including earlier parts up to the resumed checkpoint."""
        return self.seconds_before + time.perf_counter() - self.began

    def state(self) -> State:
        """See Stateful. All processes must call it. Tensors are the objects' own."""
        generators = self.processes.gather(rng_tensors())  # dropout draws different numbers in each process
        optimizer, optimizer_json = optimizer_tensors(self.optimizer)
        best, objective = self.early_stopping.state(), self.objective.state()
        tensors = {
            "weights": {name: parameter.detach() for name, parameter in self.parameters.items()},
            "optimizer": optimizer,
            **best.tensors,
            **{f"rng.{rank}": own for rank, (own, _) in enumerate(generators)},
            **{f"{_OBJECTIVE}{name}": group for name, group in objective.tensors.items()},
        }
        return State(
            tensors,
            {
                "position": dict(vars(self.position)),
                "wall_seconds": self.wall_seconds,
                "scheduler": self.scheduler.state_dict(),
                "watch": best.json,
                "guards": self.guards.state().json,
                "stage": objective.json,
                "optimizer": optimizer_json,
                "rng": [own for _, own in generators],
            },
        )

    def load_state(self, state: State) -> None:
        """See Stateful. `seconds_before` is not loaded: the caller sets it.

        Raises:
            CheckpointError: the optimiser or the objective's files differ from those of the saved run.
            KeyError, TypeError, ValueError, IndexError: the value does not have the form of `state`.
        """
        tensors, json = state
        restore_optimizer(self.optimizer, tensors["optimizer"], json["optimizer"])  # first: it checks all shapes
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors["weights"][name])
        self.scheduler.load_state_dict(json["scheduler"])
        self.early_stopping.load_state(State(tensors, json["watch"]))
        self.guards.load_state(State({}, json["guards"]))
        own = {name.removeprefix(_OBJECTIVE): g for name, g in tensors.items() if name.startswith(_OBJECTIVE)}
        self.objective.load_state(State(own, json["stage"]))
        # If another number of processes saved it, two may draw the same numbers: Checkpointer warns about that.
        rank = self.processes.rank % len(json["rng"])
        restore_rng(tensors[f"rng.{rank}"], json["rng"][rank])
        self.position = Position(**json["position"])
