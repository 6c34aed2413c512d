"""Elements of the report's results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from prefine.formatting import INTERVAL, MISSING, figure, figure_range
from prefine.intervals import Interval, Mean

NO_CHANGE = "The interval includes 0: no change shown."


@dataclass(frozen=True)
class Headline:
    """The main result in one sentence, with its intervals and reservations."""

    sentence: str
    standfirst: list[str] = field(default_factory=list)  # empty lines are not shown


@dataclass(frozen=True)
class Tile:
    """One key figure: its value after and before training, and a note."""

    label: str
    value: str
    unit: str = ""
    before: str = ""
    note: str = ""


@dataclass(frozen=True)
class Caution:
    """A warning: the fact, and what it means or what to do."""

    title: str
    text: str = ""


@dataclass(frozen=True)
class Whisker:
    """A share with its interval, drawn on a scale from 0 to 100 %."""

    when: str
    share: float
    interval: Interval
    text: str


@dataclass(frozen=True)
class ShareScale:
    """One kind of share, after training and before."""

    label: str
    meaning: str
    whiskers: list[Whisker]


@dataclass(frozen=True)
class TableRow:
    """One row of a small table: a heading and its cells."""

    heading: str
    cells: list[str]


def change_sentence(
    subject: str, before: float, after: float, interval: Interval | None, show: Callable[[float], str]
) -> str:
    """The change of a figure as a sentence without a full stop: it rose or fell only if the interval of the change
    excludes 0.

    Args:
        subject: the figure, as the subject of a sentence: "the mean reward of 45 held-out prompts".
        interval: of the change; None if unknown: the sentence then gives only the two figures.
        show: formats a figure.
    """
    was, now, opening = show(before), show(after), subject[:1].upper() + subject[1:]
    if interval is None:
        return f"{opening} stayed at {now}" if before == after else f"{opening} was {was} before and is {now} after"
    if interval.contains(0):
        return f"No change shown in {subject}: {was} before, {now} after"
    return f"{opening} {'rose' if interval.low > 0 else 'fell'} from {was} to {now}"


def change_line(what: str, change: Mean, how: str, decimals: int = 2) -> str:
    """A change with its interval as a sentence, which says if chance may explain it.

    Args:
        what: "the mean", for "Change of the mean".
        how: how before and after are compared: "paired by prompt".
    """
    size = figure(change.value, decimals, signed=True)
    if change.interval is None:
        return f"Change of {what}: {size}; there are too few values for an interval."
    line = f"Change of {what}: {size} ({INTERVAL} {figure_range(change.interval, decimals, signed=True)}, {how})."
    return f"{line} {NO_CHANGE}" if change.interval.contains(0) else line


def as_before(value: str) -> str:
    """A figure from before training, for a tile; empty if missing."""
    return "" if value == MISSING else f"before {value}"


def cell_text(value: object) -> str:
    """A JSON value as text for a table cell."""
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) < 10**15 else str(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(map(cell_text, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {cell_text(item)}" for key, item in value.items())
    return str(value)
