"""Lengths of many rows in bounded memory: an even sample, and five numbers that describe it."""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

MOST_LOOKED_AT = 10_000
"""Most rows of an even sample; fewer rows are all in it."""


class EvenSample(Generic[T]):
    """A sample of a sequence of unknown length; its share is halved whenever the sample is full.

    A hash of its place decides whether a value belongs to the sample. So the sample is the same every time, and
    patterns in the rows do not bias it as they would bias taking every n-th row.

    Attributes:
        values: the sampled values, in order.
    """

    def __init__(self, most: int = MOST_LOOKED_AT) -> None:
        self.values: list[T] = []
        self._lots: list[int] = []
        self._one_in = 1
        self._most = most

    def wants(self, place: int) -> bool:
        """Whether the value at this place (from 0) belongs to the sample; it must then be added next."""
        lot = int.from_bytes(hashlib.blake2b(place.to_bytes(8), digest_size=8).digest())
        while len(self.values) >= self._most and lot % self._one_in == 0:
            self._one_in *= 2
            pairs = zip(self._lots, self.values, strict=True)
            kept = [(each, value) for each, value in pairs if each % self._one_in == 0]
            self._lots, self.values = [each for each, _ in kept], [value for _, value in kept]
        if lot % self._one_in:
            return False
        self._lots.append(lot)
        return True

    def add(self, value: T) -> None:
        """Add a value of the sample."""
        self.values.append(value)


@dataclass(frozen=True)
class Lengths:
    """Five numbers that describe lengths: 95 % of them are at most `at_95_percent`."""

    minimum: int
    median: float
    mean: float
    at_95_percent: int
    maximum: int


def lengths_of(values: Sequence[int]) -> Lengths:
    """Describe one or more lengths."""
    ordered = sorted(values)
    return Lengths(
        minimum=ordered[0],
        median=statistics.median(ordered),
        mean=round(statistics.fmean(ordered), 1),
        at_95_percent=ordered[math.ceil(0.95 * len(ordered)) - 1],
        maximum=ordered[-1],
    )
