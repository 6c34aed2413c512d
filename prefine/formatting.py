"""Numbers, dates and times as text for readers."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from prefine.intervals import Interval

MISSING = "–"
MINUS = "\u2212"
_THIN = "\u202f"  # narrow no-break space: a number and its unit stay on one line
INTERVAL = f"95{_THIN}% interval"


def figure(value: float | None, decimals: int | None = None, *, signed: bool = False) -> str:
    """A number with useful decimals: 0.693, 12.4, 1,234; or with `decimals` of them."""
    if value is None:
        return MISSING
    size = abs(value)
    if decimals is None:
        if 0 < size < 0.01:  # 0.0005 must not become 0.001
            return _with_sign(f"{size:.2g}".replace("e-0", "e-"), value, signed)
        decimals = 3 if size < 10 else 1 if size < 1000 else 0
    return _with_sign(f"{size:,.{decimals}f}", value, signed)


def percent(share: float | None, decimals: int = 0) -> str:
    """A fraction in percent. Only exactly 0 and 1 are shown as 0 and 100."""
    if share is None:
        return MISSING
    rounded = math.floor(100 * share * 10**decimals + 0.5) / 10**decimals  # 62.5 is 63, not 62 as by round()
    if rounded in (0, 100) and share not in (0, 1):
        return percent(share, decimals + 1) if decimals < 3 else f"{100 * share}{_THIN}%"
    return f"{_with_sign(f'{abs(rounded):.{decimals}f}', rounded, False)}{_THIN}%"


def percent_range(interval: Interval) -> str:
    """An interval of shares: 58–87 %."""
    # The word joiner (no width) keeps a line from breaking after the dash.
    return f"{round(100 * interval.low)}–\u2060{round(100 * interval.high)}{_THIN}%"


def figure_range(interval: Interval, decimals: int = 2, *, signed: bool = False) -> str:
    """An interval of numbers: 0.55 to 1.13."""
    return f"{figure(interval.low, decimals, signed=signed)} to {figure(interval.high, decimals, signed=signed)}"


def tokens(value: float | None) -> str:
    """A number of tokens: whole if it is, else with one decimal (a median of two, a mean)."""
    return figure(value, 0 if value is None or value == int(value) else 1)


def whole(value: float | None) -> str:
    """A count: 1,234."""
    return figure(value, 0)


def plural(count: int, noun: str, several: str | None = None) -> str:
    """1 pair, 2 pairs."""
    return f"{count:,} {noun if count == 1 else several or noun + 's'}"


def listing(parts: list[str]) -> str:
    """a, b and c."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)


def megabytes(size_bytes: int) -> str:
    """A size on the disk: 1,234.5 MB."""
    return f"{size_bytes / 1e6:,.1f} MB"


def duration(seconds: float | None) -> str:
    """42 s, 11 min 24 s, 3 h 20 min."""
    if seconds is None or seconds < 0:
        return MISSING
    if seconds < 10:
        return f"{seconds:.1f}{_THIN}s"
    total = round(seconds)
    hours, minutes = total // 3600, total % 3600 // 60
    if hours:
        return f"{hours:,}{_THIN}h {minutes}{_THIN}min"
    return f"{minutes}{_THIN}min {total % 60}{_THIN}s" if minutes else f"{total}{_THIN}s"


def moment(value: str | None) -> str | None:
    """An ISO time as 14 November 2025, 22:13 UTC; other text unchanged."""
    if value is None:
        return None
    try:
        found = datetime.fromisoformat(value)
    except ValueError:
        return value
    if found.tzinfo is None:
        return f"{found.day} {found:%B %Y, %H:%M}"
    found = found.astimezone(UTC)
    return f"{found.day} {found:%B %Y, %H:%M} UTC"


def visible(value: str) -> str:
    """The text with visible substitutes for characters that HTML or UTF-8 cannot hold."""
    if value.isprintable():
        return value
    return "".join(map(_visible, value.replace("\r\n", "\n")))


def _visible(character: str) -> str:
    code = ord(character)
    if character in "\n\t":
        return character
    if code < 0x20:
        return chr(0x2400 + code)  # Unicode's control pictures
    if 0x7F <= code < 0xA0 or 0xD800 <= code < 0xE000 or code & 0xFFFE == 0xFFFE or 0xFDD0 <= code < 0xFDF0:
        return "\ufffd"
    return character


def _with_sign(digits: str, value: float, signed: bool) -> str:
    if not any(digit in "123456789" for digit in digits.split("e")[0]):
        return digits  # no "-0.00"
    return f"{MINUS}{digits}" if value < 0 else f"+{digits}" if signed else digits
