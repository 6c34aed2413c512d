from __future__ import annotations

import math
import subprocess
import sys

import pytest

from prefine.report.plots import Bars, Line, histogram, line_chart, shift_chart, smoothed, thinned

LINES = [Line([0, 1, 2], [0.5, math.nan, 0.3], "after", markers=True, low=[0.4, 0.3, 0.2], high=[0.6, 0.5, 0.4])]


def test_a_drawing_is_the_same_each_time_whatever_the_users_settings_are() -> None:
    import matplotlib

    first = line_chart("a", "label", LINES, percent=True)
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9, "svg.fonttype": "path"}):
        assert line_chart("a", "label", LINES, percent=True) == first


def test_a_drawing_is_coloured_by_the_page_and_names_no_address() -> None:
    drawing = line_chart("a", "label", LINES) + histogram(
        "b", "l", [Bars([1, 2], "before", 1, True)], xlabel="x", ylabel="y"
    )
    drawing += shift_chart("c", "l", [(1, 2), (2, 1)])
    assert "var(--ink-after)" in drawing
    assert "#010a" not in drawing
    assert "http" not in drawing
    assert "font-family" not in drawing
    assert "metadata" not in drawing


def test_a_label_cannot_break_out() -> None:
    assert 'aria-label="&#34;&gt;&lt;b&gt;"' in line_chart("a", '"><b>', LINES)


def test_ids_of_two_drawings_differ() -> None:
    assert 'id="one-' in line_chart("one", "", LINES)
    assert 'id="two-' in line_chart("two", "", LINES)
    assert "url(#p" not in line_chart("two", "", LINES)


@pytest.mark.parametrize("values", [[], [5.0], [5.0, 5.0], [1e300, -1e300]])
def test_odd_values_can_be_drawn(values: list[float]) -> None:
    assert histogram("h", "", [Bars(values, "after", None, False)], xlabel="", ylabel="").startswith("<svg")
    assert shift_chart("s", "", [(value, value) for value in values]).startswith("<svg")
    assert line_chart("l", "", [Line(range(len(values)), values, "train")]).startswith("<svg")


def test_long_series_are_thinned_to_means() -> None:
    xs, ys = thinned(range(1000), [1.0, 3.0] * 500, most=10)
    assert len(xs) == 10
    assert ys == [2.0] * 10
    assert thinned([1, 2], [3, math.inf]) == ([1, 2], [3, math.inf])


def test_smoothing_passes_over_gaps() -> None:
    assert smoothed([1.0, math.nan, 3.0], 3) == [1.0, 2.0, 3.0]
    assert math.isnan(smoothed([math.nan], 3)[0])


def test_pyplot_and_torch_are_never_loaded() -> None:
    code = (
        "import sys\nfrom prefine.report import page\n"
        "assert not {'matplotlib', 'scipy', 'torch'} & sys.modules.keys()\n"
        "from prefine.report.plots import Line, line_chart\n"
        "line_chart('a', '', [Line([0], [1], 'after')])\n"
        "assert not {'matplotlib.pyplot', 'torch'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
