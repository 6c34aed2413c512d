"""Figures of a comparison in words, as the sentences of findings have them."""

from __future__ import annotations

from prefine.comparisons.estimates import interval_of
from prefine.comparisons.result import Estimate
from prefine.formatting import INTERVAL, figure, percent, percent_range, plural


def capital(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def value_text(value: float, unit: str) -> str:
    """A figure with its unit: 62 %, 81.2 tokens, 0.31 nats."""
    if unit == "share":
        return percent(value, 0 if value in (0, 1) else 1)
    return f"{figure(value)} {unit}".rstrip() if unit != "score" else figure(value)


def change_text(change: Estimate, unit: str) -> str:
    """A change with its sign and interval: +4.5 points (95 % interval +1.2 to +7.8)."""
    size, ends = change_parts(change, unit)
    return f"{size} ({INTERVAL} {ends})" if ends else f"{size} (no interval)"


def change_parts(change: Estimate, unit: str) -> tuple[str, str]:
    """A change with its sign and unit, and its interval: "+4.5 points" and "+1.2 to +7.8"; empty without one."""
    scale, name = (100, "points") if unit == "share" else (1, "" if unit == "score" else unit)
    value, interval = scale * change.value, interval_of(change)
    size = max(abs(value), *(scale * abs(end) for end in (interval.low, interval.high))) if interval else abs(value)
    decimals = 1 if size >= 10 or unit == "share" else 2 if size >= 0.1 else None
    text = f"{figure(value, decimals, signed=True)} {name}".rstrip()
    if interval is None:
        return text, ""
    low, high = (figure(scale * end, decimals, signed=True) for end in (interval.low, interval.high))
    return text, f"{low} to {high}"


def interval_text(estimate: Estimate, unit: str) -> str:
    """An estimate's interval: 95 % interval 0.55 to 1.13; "no interval" without one."""
    interval = interval_of(estimate)
    if interval is None:
        return "no interval"
    return f"{INTERVAL} {value_text(interval.low, unit)} to {value_text(interval.high, unit)}"


def rate_text(rate: Estimate) -> str:
    """A win rate with its interval: 62 % (95 % interval 55–69 %)."""
    interval = interval_of(rate)
    return f"{percent(rate.value)} ({INTERVAL} {percent_range(interval)})" if interval else percent(rate.value)


def p_text(p: float | None, adjusted: float | None = None) -> str:
    """p = 0.03, or p < 0.001; with the corrected one, if it reads differently."""
    if p is None:
        return "no test"
    raw, corrected = _size(p), _size(p if adjusted is None else adjusted)
    return f"p {raw}" if raw == corrected else f"p {raw}, corrected for several comparisons {corrected}"


def settle_text(more: int | None) -> str:
    """How many more prompts would settle it, as a sentence; empty if nothing can be said."""
    if more is None:
        return ""
    return f" About {plural(more, 'more prompt')} would settle it, if the true change is as large as this one."


def _size(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {figure(p, 3 if p < 0.1 else 2)}"
