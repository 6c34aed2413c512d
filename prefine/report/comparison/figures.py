"""Figures of a comparison as text, by their units, and findings as words and symbols."""

from __future__ import annotations

from dataclasses import dataclass

from prefine.comparisons.result import Direction, Estimate, Finding
from prefine.formatting import MISSING, figure, percent

_POINTS = 1  # decimals of a change of a share, in percentage points


@dataclass(frozen=True)
class Mark:
    """A finding for the page: a symbol and a word, so that it does not depend on colour.

    Attributes:
        kind: class name in the style sheet.
    """

    kind: str
    symbol: str
    word: str


MARKS: dict[str, Mark] = {
    "better": Mark("better", "▲", "better"),
    "worse": Mark("worse", "▼", "worse"),
    "no difference shown": Mark("same", "=", "no difference shown"),
    "not computed": Mark("missing", "–", "not computed"),
}
_HIGHER = Mark("neutral", "↑", "higher")
_LOWER = Mark("neutral", "↓", "lower")


def mark_of(finding: Finding, better: Direction, change: Estimate | None) -> Mark:
    """A finding's mark; of a figure that only describes, whether it is higher or lower."""
    if better != "neither" or finding == "not computed" or change is None or contains_zero(change):
        return MARKS[finding] if better != "neither" or finding == "not computed" else MARKS["no difference shown"]
    return _HIGHER if change.value > 0 else _LOWER


def contains_zero(change: Estimate) -> bool:
    """Whether the interval of a change contains 0, or there is none."""
    return change.low is None or change.high is None or change.low <= 0 <= change.high


def value_text(estimate: Estimate | None, unit: str) -> str:
    """A figure of one model: 34 %, 81.2 tokens."""
    return MISSING if estimate is None else _amount(estimate.value, unit)


def range_text(estimate: Estimate | None, unit: str) -> str:
    """Its 95 % interval: 21 % to 49 %; empty if it has none."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return ""
    return f"{_amount(estimate.low, unit)} to {_amount(estimate.high, unit)}"


def change_text(change: Estimate | None, unit: str) -> str:
    """A change: +12.5 points, −3.1 tokens."""
    return MISSING if change is None else _change(change.value, unit)


def change_range(change: Estimate | None, unit: str) -> str:
    """The interval of a change: −1.2 to +3.4; empty if it has none."""
    if change is None or change.low is None or change.high is None:
        return ""
    return f"{_change(change.low, unit, bare=True)} to {_change(change.high, unit, bare=True)}"


def p_text(p: float | None) -> str:
    """A p-value: 0.032, < 0.001; empty if unknown."""
    if p is None:
        return ""
    return "< 0.001" if p < 0.001 else figure(p, 3)


def _amount(value: float, unit: str) -> str:
    if unit == "share":
        return percent(value, 0 if value in (0, 1) else 1)
    return figure(value, _decimals(value, unit))


def _change(value: float, unit: str, *, bare: bool = False) -> str:
    if unit == "share":
        return f"{figure(100 * value, _POINTS, signed=True)}{'' if bare else ' points'}"
    name = f" {unit}" if unit in ("tokens", "nats") and not bare else ""
    return f"{figure(value, _decimals(value, unit), signed=True)}{name}"


def _decimals(value: float, unit: str) -> int | None:
    if unit == "tokens":
        return 1 if abs(value) < 1000 else 0
    if unit == "score":
        return 2 if abs(value) < 100 else 1
    return None
