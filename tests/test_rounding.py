"""Rates and ratios keep two significant digits, however small they are."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefine.rounding import two_digits


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0336, "0.034"),
        (0.00012345, "0.00012"),
        (0.5, "0.50"),
        (0.0996, "0.10"),
        (1.0, "1.0"),
        (1.749, "1.7"),
        (9.96, "10"),
        (12.4, "12"),
        (1234.5, "1,234"),
        (0.0, "0"),
        (math.inf, "inf"),
    ],
)
def test_figures(value: float, shown: str) -> None:
    assert two_digits(value) == shown


@given(st.floats(1e-12, 1e12))
def test_what_is_shown_is_near(value: float) -> None:
    """Half a unit of the second digit at most, half of one from 10 on."""
    assert float(two_digits(value).replace(",", "")) == pytest.approx(value, rel=0.051)
