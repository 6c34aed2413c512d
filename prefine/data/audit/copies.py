"""Which of several copies of a record a cleaned copy keeps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prefine.data.audit.drops import Drops, Why
from prefine.data.records.selection import Place


class Copies:
    """Records that repeat an earlier one, exactly or nearly.

    Of each group the first record is kept that nothing else leaves out, so that a fact of the data is not lost because
    its first copy contradicts another record or leaks.

    Args:
        places: see JudgedItems.
        drops: takes the others.
    """

    def __init__(self, places: Sequence[Place], drops: Drops) -> None:
        self._places = places
        self._drops = drops
        self._exact: dict[int, int] = {}
        self._near: dict[int, int] = {}

    def exact(self, number: int, first: int) -> None:
        """Note that a record repeats `first`, which repeats none."""
        self._exact[number] = first

    def near(self, number: int, first: int) -> None:
        """Note that a record, which repeats none exactly, nearly repeats `first`, which repeats none nearly."""
        self._near[number] = first

    def decide(self) -> None:
        """Leave out copies; contradictions and leaks are left out by now."""
        for number, first in self._exact.items():
            dropped = self._drops.of(first)
            if dropped is not None and dropped.why is Why.CONTRADICTION:
                self._drops.drop(number, self._places[number], dropped.why, dropped.other)
        for group in self._groups():
            staying = [number for number in group if self._drops.of(number) is None]
            for number in staying[1:]:
                repeats = self._exact.get(number, number) == self._exact.get(staying[0], staying[0])
                why = Why.DUPLICATE if repeats else Why.NEAR_DUPLICATE
                self._drops.drop(number, self._places[number], why, self._places[staying[0]])

    def _groups(self) -> Iterator[list[int]]:
        """Numbers of records that repeat each other, in order."""
        groups: dict[int, list[int]] = {}
        for number in {*self._exact, *self._near}:
            first = self._exact.get(number, number)
            first = self._near.get(first, first)
            groups.setdefault(first, [first]).append(number)
        return (sorted(group) for group in groups.values())
