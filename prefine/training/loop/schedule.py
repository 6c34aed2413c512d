"""The schedule of a run: how many steps it has, and each step's rows and learning rate."""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Any

import torch

from prefine.data.tokens.trees import epoch_order, even_part
from prefine.recipe.sections import TrainingSection
from prefine.recipe.steps import steps_per_epoch


def rows_of_step(step: int, rows: int, section: TrainingSection) -> list[int]:
    """Row indices of step `step` (from 0). They depend on the arguments alone, so a resumed run gets the same.

    An epoch's steps have equally many rows, or one less. Otherwise a last step on the few remaining rows would move the
    weights as far as any other.
    """
    steps = steps_per_epoch(rows, section.batch_size)
    epoch, within = divmod(step, steps)
    return even_part(_order(rows, section.seed, epoch), within, steps)


@lru_cache(maxsize=2)
def _order(rows: int, seed: int, epoch: int) -> tuple[int, ...]:
    return tuple(epoch_order(rows, seed, epoch))


def new_scheduler(
    optimizer: torch.optim.Optimizer, section: TrainingSection, total_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The recipe's schedule over a whole run."""
    from transformers import get_scheduler

    name = "constant_with_warmup" if section.schedule == "constant" else section.schedule
    warmup = round(section.warmup_fraction * total_steps)
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps the real one
    scheduler: torch.optim.lr_scheduler.LRScheduler = get_scheduler(
        name, inner, num_warmup_steps=warmup, num_training_steps=total_steps
    )
    return scheduler


def advance(scheduler: torch.optim.lr_scheduler.LRScheduler) -> None:
    """Set the next step's learning rate. An update without an optimiser step counts, too."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step\\(\\)` before")
        scheduler.step()


def slow_down(
    scheduler: torch.optim.lr_scheduler.LRScheduler, optimizer: torch.optim.Optimizer, factor: float
) -> float:
    """Multiply all learning rates from now on, in scheduler and optimiser; returns the new peak of the first one."""
    state: Any = scheduler.state_dict()
    state["base_lrs"] = [rate * factor for rate in state["base_lrs"]]
    state["_last_lr"] = [rate * factor for rate in state["_last_lr"]]
    scheduler.load_state_dict(state)
    for group in optimizer.param_groups:
        group["lr"] *= factor
        group["initial_lr"] *= factor
    return float(state["base_lrs"][0])
