from __future__ import annotations

import pytest

from prefine import formatting as wording
from prefine.intervals import Interval

THIN = "\u202f"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (0.6931, "0.693"),
        (-0.00001, "\u22121e-5"),
        (0.0005, "0.0005"),  # not 0.001
        (0.00526, "0.0053"),
        (0.0123, "0.012"),
        (12.34, "12.3"),
        (-112.31, "\u2212112.3"),
        (12345, "12,345"),
        (0.0, "0.000"),
    ],
)
def test_figure(value: float | None, shown: str) -> None:
    assert wording.figure(value) == shown


def test_nothing_is_minus_zero() -> None:
    assert wording.figure(-0.001, 2, signed=True) == "0.00"


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0, "0"), (1, "100"), (0.625, "63"), (0.84375, "84"), (0.999, "99.9"), (0.001, "0.1"), (0.5, "50")],
)
def test_percent_shows_none_and_all_only_where_it_is_so(share: float, shown: str) -> None:
    assert wording.percent(share) == f"{shown}{THIN}%"


def test_ranges() -> None:
    assert wording.percent_range(Interval(0.682, 0.931)) == f"68–\u206093{THIN}%"
    assert wording.figure_range(Interval(-0.5, 1.25), signed=True) == "\u22120.50 to +1.25"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(2.34, "2.3 s"), (42, "42 s"), (684, "11 min 24 s"), (12000, "3 h 20 min"), (59.7, "1 min 0 s"), (-1, "–")],
)
def test_duration(seconds: float, shown: str) -> None:
    assert wording.duration(seconds).replace(THIN, " ") == shown


def test_moment() -> None:
    assert wording.moment("2025-11-22T23:13:00+01:00") == "22 November 2025, 22:13 UTC"
    assert wording.moment("2025-11-22T23:13:00") == "22 November 2025, 23:13"
    assert wording.moment("yesterday") == "yesterday"
    assert wording.moment(None) is None


def test_characters_that_a_page_cannot_hold_are_shown() -> None:
    assert wording.visible("a\0b\x1b[31m\ud800\x85\ufffe\r\n\tc") == "a␀b␛[31m\ufffd\ufffd\ufffd\n\tc"
    assert wording.visible("Grüße 你好 🙂") == "Grüße 你好 🙂"


def test_listing_and_plural() -> None:
    assert wording.listing(["a", "b", "c"]) == "a, b and c"
    assert wording.listing(["a"]) == "a"
    assert wording.plural(1, "pair") == "1 pair"
    assert wording.plural(1200, "pair") == "1,200 pairs"
