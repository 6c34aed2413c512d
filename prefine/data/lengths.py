"""Lengths of many rows in bounded memory: an even sample of them, and the five numbers that describe it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

MOST_LOOKED_AT = 20_000
"""Rows an even sample holds at most. Up to that many, it holds all."""


class EvenSample(Generic[T]):
    """Every n-th of a sequence whose end is unknown; n doubles whenever the sample is full.

    Unlike a random sample it is the same every time, and unlike the first rows it is as mixed as the whole.

    Attributes:
        every: n.
        values: what was added, in order.
    """

    def __init__(self, most: int = MOST_LOOKED_AT) -> None:
        self.every = 1
        self.values: list[T] = []
        self._most = most

    def wants(self, place: int) -> bool:
        """Whether the value at this place (from 0) belongs to the sample; what is wanted must be added."""
        if place % self.every:
            return False
        if len(self.values) < self._most:
            return True
        self.values = self.values[::2]
        self.every *= 2
        return place % self.every == 0

    def add(self, value: T) -> None:
        """Add a value that is wanted."""
        self.values.append(value)


@dataclass(frozen=True)
class Lengths:
    """Five numbers about lengths: 95 % of them are at most `at_95_percent`."""

    minimum: int
    median: float
    mean: float
    at_95_percent: int
    maximum: int


def lengths_of(values: Sequence[int]) -> Lengths:
    """Describe lengths, of which there is at least one."""
    ordered = sorted(values)
    return Lengths(
        minimum=ordered[0],
        median=statistics.median(ordered),
        mean=round(statistics.fmean(ordered), 1),
        at_95_percent=ordered[math.ceil(0.95 * len(ordered)) - 1],
        maximum=ordered[-1],
    )
