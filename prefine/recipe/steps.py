"""How many steps a run has."""

from __future__ import annotations

import math

from prefine.recipe.sections import TrainingSection


def steps_per_epoch(rows: int, per_step: int) -> int:
    """Optimiser steps in one pass over `rows`, of at most `per_step` rows each."""
    return -(-rows // per_step)


def total_steps(rows: int, section: TrainingSection) -> int:
    """The number of steps of a whole run over `rows` training rows; at least 1."""
    steps = math.ceil(round(section.epochs * steps_per_epoch(rows, section.batch_size), 6))  # 1.1 * 10 is above 11
    return max(1, steps if section.max_steps is None else min(steps, section.max_steps))
