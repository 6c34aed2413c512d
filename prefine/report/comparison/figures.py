"""Figures of a comparison as text, by their units, and findings as words and symbols."""

from __future__ import annotations

from dataclasses import dataclass

from prefine.comparisons.result import Estimate, Finding
from prefine.comparisons.sentences import change_parts, value_text
from prefine.formatting import MISSING, figure


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
    "differs": Mark("neutral", "≠", "differs"),
    "no difference shown": Mark("same", "=", "no difference shown"),
    "not computed": Mark("missing", "–", "not computed"),
}
_HIGHER = Mark("neutral", "↑", "higher")
_LOWER = Mark("neutral", "↓", "lower")


def mark_of(finding: Finding, change: Estimate | None) -> Mark:
    """A finding's mark; of a figure that differs and only describes, whether it is higher or lower."""
    if finding != "differs" or change is None:
        return MARKS[finding]
    return _HIGHER if change.value > 0 else _LOWER


def shown_value(estimate: Estimate | None, unit: str) -> str:
    """A figure of one model, without its unit except for a share: 34.0 %, 81.2."""
    return MISSING if estimate is None else value_text(estimate.value, "share" if unit == "share" else "score")


def shown_change(change: Estimate | None, unit: str) -> tuple[str, str]:
    """A change and its interval, as sentences have them: "+12.5 points" and "+1.2 to +23.8"; empty without one."""
    return (MISSING, "") if change is None else change_parts(change, unit)


def p_text(p: float | None) -> str:
    """A p-value: 0.032, < 0.001; empty if unknown."""
    if p is None:
        return ""
    return "< 0.001" if p < 0.001 else figure(p, 3)
