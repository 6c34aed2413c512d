"""The forms that a run's results take at the top of its report."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Headline:
    """The main result in one sentence, and what a careful reader must know with it."""

    sentence: str
    standfirst: list[str] = field(default_factory=list)  # empty lines are left out


@dataclass(frozen=True)
class Tile:
    """One key figure: what it is now, what it was, and how to read it."""

    label: str
    value: str
    unit: str = ""
    before: str = ""
    note: str = ""
