"""Charts as inline SVG: small, deterministic, coloured by the page's own style sheet.

matplotlib draws with placeholder colours that become CSS variables, so that one drawing suits light, dark and print.
Text stays text, in the page's font and readable by screen readers. The page adds titles and keys.
"""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from markupsafe import Markup, escape

from prefine.formatting import visible

RunInk = Literal["run1", "run2", "run3", "run4", "run5", "run6", "run7", "run8"]
Ink = Literal["before", "after", "chosen", "rejected", "train", "text", "muted", "line"] | RunInk
RUN_INKS: tuple[RunInk, ...] = ("run1", "run2", "run3", "run4", "run5", "run6", "run7", "run8")
"""Of runs that are compared on one page."""

# Placeholders: each is replaced by var(--ink-NAME). Unlike any colour that matplotlib would choose by itself.
_COLOURS: dict[Ink, str] = {
    "before": "#010a01",
    "after": "#010a02",
    "chosen": "#010a03",
    "rejected": "#010a04",
    "train": "#010a05",
    "text": "#010a06",
    "muted": "#010a07",
    "line": "#010a08",
    **{ink: f"#010a1{place}" for place, ink in enumerate(RUN_INKS)},
}
_WIDTH_IN, _HEIGHT_IN = 3.6, 2.35
_MOST_POINTS = 400
_FONT_POINTS = 8.0
_STYLE = {
    "svg.hashsalt": "prefine",  # ids from content alone: the same run gives the same bytes
    "svg.fonttype": "none",
    "font.family": ["DejaVu Sans"],  # part of matplotlib, so that the layout does not depend on the machine's fonts
    "font.size": _FONT_POINTS,
    "axes.unicode_minus": True,
    "axes.linewidth": 0.6,
    "axes.edgecolor": _COLOURS["line"],
    "axes.labelcolor": _COLOURS["muted"],
    "axes.labelsize": _FONT_POINTS,
    "xtick.color": _COLOURS["line"],
    "ytick.color": _COLOURS["line"],
    "xtick.labelcolor": _COLOURS["muted"],
    "ytick.labelcolor": _COLOURS["muted"],
    "grid.color": _COLOURS["line"],
    "grid.linewidth": 0.5,
    "path.simplify": True,
}


@dataclass(frozen=True)
class Line:
    """One line of a chart; NaN leaves a gap.

    Attributes:
        low, high: ends of an interval at each point, drawn as a band.
        style: `faint` is drawn below the others, for noisy values.
        events: steps of a dotted vertical line in the same ink.
    """

    xs: Sequence[float]
    ys: Sequence[float]
    ink: Ink
    style: Literal["solid", "dashed", "faint"] = "solid"
    markers: bool = False
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    events: Sequence[float] = ()


@dataclass(frozen=True)
class Bars:
    """One histogram: values, and a value marked by a line."""

    values: Sequence[float]
    ink: Ink
    mark: float | None
    filled: bool


def line_chart(
    name: str, label: str, lines: Sequence[Line], *, percent: bool = False, reference: float | None = None
) -> Markup:
    """Values over optimiser steps.

    Args:
        name: unique on the page; becomes part of the drawing's ids.
        label: description for screen readers.
        percent: the values are shares; the axis runs from 0 to 100 %.
        reference: height of a dotted line.
    """
    with _axes() as (figure, axes):
        if reference is not None:
            axes.axhline(reference, color=_COLOURS["muted"], linewidth=0.8, linestyle=(0, (1, 2)))
        for line in lines:
            _draw_line(axes, line)
        axes.set_xlabel("step")
        _set_ticks(axes)
        if percent:
            axes.set_ylim(-0.02, 1.02)
            axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100\u202f%"])
        else:
            axes.margins(y=0.08)
        return _svg(figure, name, label)


def _draw_line(axes: Any, line: Line) -> None:
    colour = _COLOURS[line.ink]
    faint = line.style == "faint"
    for step in line.events:
        axes.axvline(step, color=colour, linewidth=0.9, linestyle=(0, (1, 1.5)))
    if line.low is not None and line.high is not None:
        axes.fill_between(line.xs, line.low, line.high, color=colour, alpha=0.14, linewidth=0)
        if len(line.xs) == 1:  # a band of one point has no width
            axes.vlines(line.xs, line.low, line.high, color=colour, alpha=0.4, linewidth=3)
    axes.plot(
        line.xs,
        line.ys,
        color=colour,
        alpha=0.35 if faint else 1,
        linewidth=0.8 if faint else 1.6,
        linestyle=(0, (4, 1.5)) if line.style == "dashed" else "-",
        # A single point would be invisible as a line.
        marker="o" if line.markers or len(line.xs) == 1 else None,
        markersize=3.4,
        solid_joinstyle="round",
    )


def _set_ticks(axes: Any, *, whole: bool = True) -> None:
    """Few enough ticks that labels do not overlap; on the x axis only whole numbers, unless `whole` is False."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=whole, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10], min_n_ticks=3))


def shift_chart(name: str, label: str, points: Sequence[tuple[float, float]], unit: str = "nats") -> Markup:
    """Held-out pairs by the change of log-probability of the chosen (x) and the rejected answer (y).

    Below the diagonal the chosen answer gained on the rejected one.
    """
    with _axes() as (figure, axes):
        across, up = ([0.0, *(point[side] for point in points)] for side in (0, 1))
        left, right = _widened(min(across), max(across))
        bottom, top = _widened(min(up), max(up))
        diagonal = [min(left, bottom), max(right, top)]
        axes.axhline(0, color=_COLOURS["line"], linewidth=0.9)
        axes.axvline(0, color=_COLOURS["line"], linewidth=0.9)
        axes.plot(diagonal, diagonal, color=_COLOURS["muted"], linewidth=0.8, linestyle=(0, (1, 2)))
        axes.fill_between(diagonal, diagonal, diagonal[0], color=_COLOURS["chosen"], alpha=0.07, linewidth=0)
        shown = evenly(points, _MOST_POINTS)
        sides: tuple[tuple[bool, Ink], ...] = ((True, "chosen"), (False, "rejected"))
        for below, ink in sides:
            side = [point for point in shown if (point[1] < point[0]) is below]
            axes.plot(
                [chosen for chosen, _ in side],
                [rejected for _, rejected in side],
                color=_COLOURS[ink],
                linestyle="",
                marker="o" if below else "D",
                markersize=3.6 if below else 3.2,
                alpha=0.75,
                markeredgewidth=0,
            )
        axes.set_xlim(left, right)
        axes.set_ylim(bottom, top)
        axes.set_xlabel(f"chosen answer, {unit} →")
        axes.set_ylabel(f"rejected answer, {unit} →")
        _set_ticks(axes, whole=False)
        return _svg(figure, name, label)


def _widened(low: float, high: float) -> tuple[float, float]:
    room = 0.08 * (high - low) or 1
    return low - room, high + room


def histogram(
    name: str, label: str, bars: Sequence[Bars], *, xlabel: str, ylabel: str, reference: float | None = None
) -> Markup:
    """Several distributions over one axis, with common bins.

    Args:
        reference: place of a solid vertical line.
    """
    with _axes() as (figure, axes):
        if reference is not None:
            axes.axvline(reference, color=_COLOURS["text"], linewidth=0.8)
        values = [value for group in bars for value in group.values]
        low, high = min(values, default=0), max(values, default=1)
        if low == high:
            low, high = low - 0.5, high + 0.5
        bins = min(20, max(6, math.ceil(2 * max((len(group.values) for group in bars), default=1) ** 0.5)))
        edges = [low + (high - low) * step / bins for step in range(bins + 1)]
        for group in bars:
            colour = _COLOURS[group.ink]
            axes.hist(
                group.values,
                bins=edges,
                histtype="stepfilled" if group.filled else "step",
                color=colour,
                alpha=0.4 if group.filled else 1,
                linewidth=0 if group.filled else 1.6,
            )
            if group.mark is not None:
                axes.axvline(group.mark, color=colour, linewidth=1.2, linestyle=(0, (2, 1.5)))
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        _set_ticks(axes, whole=all(float(value).is_integer() for value in values))
        axes.yaxis.get_major_locator().set_params(integer=True)
        return _svg(figure, name, label)


def evenly(items: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most `most` of the items, evenly spaced, so that the page does not grow with the data."""
    if len(items) <= most:
        return list(items)
    return [items[index * len(items) // most] for index in range(most)]


def thinned(xs: Sequence[float], ys: Sequence[float], most: int = _MOST_POINTS) -> tuple[list[float], list[float]]:
    """A long series as means of equal bins; a bin without a finite value is NaN."""
    if len(xs) <= most:
        return list(xs), list(ys)
    edges = [index * len(xs) // most for index in range(most + 1)]
    bins = list(itertools.pairwise(edges))
    return [_mean(xs[start:end]) for start, end in bins], [_mean(ys[start:end]) for start, end in bins]


def smoothed(ys: Sequence[float], window: int) -> list[float]:
    """The centred mean over `window` values, fewer at the ends. NaN is ignored."""
    half = window // 2
    return [_mean(ys[max(0, index - half) : index + half + 1]) for index in range(len(ys))]


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan


@contextmanager
def _axes() -> Iterator[tuple[Any, Any]]:
    # Not pyplot, which chooses a window system and keeps every figure alive.
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", _STYLE]):  # "default" first, so that the user's matplotlibrc has no effect
        figure = Figure(figsize=(_WIDTH_IN, _HEIGHT_IN), layout="constrained")
        axes = figure.add_subplot()
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        axes.tick_params(left=False, length=2.5)
        axes.ticklabel_format(useOffset=False)
        yield figure, axes


def _svg(figure: Any, name: str, label: str) -> Markup:
    buffer = io.StringIO()
    # Metadata and namespaces would add a date and addresses; HTML needs neither.
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", drawing).replace("xlink:href", "href")
    drawing = re.sub(r"font-family: [^;\"]*;? ?", "", drawing)
    drawing = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", drawing)
    for ink, colour in _COLOURS.items():
        drawing = drawing.replace(colour, f"var(--ink-{ink})")
    view_box = re.search(r'viewBox="[^"]*"', drawing)
    start = f'<svg {view_box[0] if view_box else ""} role="img" aria-label="{escape(visible(label))}">'
    return Markup(start + drawing[drawing.index(">") + 1 :])  # noqa: S704 - drawn here, and the label is escaped


def reliability_chart(name: str, label: str, points: Sequence[tuple[float, float, float, float]]) -> Markup:
    """Accuracy against confidence; on the dotted line the model is calibrated.

    Args:
        points: (confidence, accuracy, low, high) of each bin, with the accuracy's interval, all in [0, 1].
    """
    with _axes() as (figure, axes):
        axes.plot([0.5, 1], [0.5, 1], color=_COLOURS["muted"], linewidth=0.8, linestyle=(0, (1, 2)))
        for confidence, accuracy, low, high in points:
            axes.vlines(confidence, low, high, color=_COLOURS["after"], alpha=0.38, linewidth=3.5)
            axes.plot([confidence], [accuracy], color=_COLOURS["after"], marker="o", markersize=4.2)
        axes.set_xlim(0.48, 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xticks([0.5, 0.6, 0.7, 0.8, 0.9, 1], ["50", "60", "70", "80", "90", "100\u202f%"])
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100\u202f%"])
        axes.set_xlabel("confidence")
        axes.set_ylabel("accuracy")
        return _svg(figure, name, label)


def scatter_chart(
    name: str, label: str, groups: dict[Ink, Sequence[tuple[float, float]]], *, xlabel: str, ylabel: str
) -> Markup:
    """Points of two groups; of large groups an even sample is drawn."""
    with _axes() as (figure, axes):
        for ink, points in groups.items():
            shown = evenly(points, _MOST_POINTS)
            axes.plot(
                [x for x, _ in shown],
                [y for _, y in shown],
                color=_COLOURS[ink],
                linestyle="",
                marker="D" if ink == "rejected" else "o",
                markersize=3.0,
                alpha=0.65,
                markeredgewidth=0,
            )
        axes.margins(0.06)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        return _svg(figure, name, label)
