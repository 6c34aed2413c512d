"""Charts of a run: figures over steps, and lengths of answers, with titles and keys."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from prefine.formatting import figure, plural, tokens
from prefine.intervals import Share, median
from prefine.report.facts import RunFacts, number, numbers
from prefine.report.plots import Bars, Ink, Line, histogram, line_chart, smoothed, thinned

_FEWEST_TO_SMOOTH = 30


@dataclass(frozen=True)
class Key:
    """One entry of a chart's key.

    Attributes:
        mark: of the swatch: line, dashed, dotted, dot, diamond or block.
    """

    ink: Ink
    mark: str
    label: str


@dataclass(frozen=True)
class Chart:
    """A drawing with its texts. Key numbers are in the title, so that nobody must read them off an axis."""

    title: str
    subtitle: str
    drawing: Markup
    keys: list[Key] = field(default_factory=list)
    note: str = ""


_TRAINING = Key("train", "line", "training")
_HELD_OUT = Key("after", "line", "held-out")


def drawn(*charts: Chart | None) -> list[Chart]:
    """The charts that have figures."""
    return [chart for chart in charts if chart is not None]


def loss_chart(facts: RunFacts, unit: str) -> Chart | None:
    """The loss over the steps; None without data."""
    lines, keys = chart_lines(facts, "loss")
    if not lines:
        return None
    return Chart(chart_title("Loss", facts, "loss"), unit, line_chart("loss", "Loss over steps", lines), keys)


def metric_chart(facts: RunFacts, key: str, name: str, subtitle: str, decimals: int | None = 2) -> Chart | None:
    """One figure over the steps, in training and held-out; None without data."""
    lines, keys = chart_lines(facts, key)
    if not lines:
        return None
    return Chart(chart_title(name, facts, key, decimals), subtitle, line_chart(key, f"{name} over steps", lines), keys)


def training_chart(facts: RunFacts, key: str, name: str, subtitle: str) -> Chart | None:
    """A figure of training steps only; None without data."""
    lines = _training_lines(facts, key)
    if not lines:
        return None
    peak = max(numbers(facts.train, key))
    return Chart(f"{name}: at most {figure(peak)}", subtitle, line_chart(key, f"{name} over steps", lines), [_TRAINING])


def chart_title(name: str, facts: RunFacts, key: str, decimals: int | None = None) -> str:
    """The name with the first and the last figure, held-out or else of training: Loss: held-out 0.693 → 0.541."""
    found = numbers(facts.heldout, key)
    where = "held-out " if found else "training "
    found = found or numbers(facts.train, key)
    ends = " → ".join(figure(value, decimals) for value in dict.fromkeys((found[0], found[-1])))
    return f"{name}: {where}{ends}"


def chart_lines(facts: RunFacts, key: str) -> tuple[list[Line], list[Key]]:
    """The training curve of one figure, smoothed if long, and the held-out one with intervals if it is a share."""
    training = _training_lines(facts, key)
    lines, keys = [*training], [_TRAINING] if training else []
    steps, values = series(facts.heldout, key)
    if steps:
        low, high = _band(values, facts.heldout_count) if key == "accuracy" else (None, None)
        lines.append(Line(steps, values, "after", markers=len(steps) <= 40, low=low, high=high))
        keys.append(_HELD_OUT)
    return lines, keys


def _training_lines(facts: RunFacts, key: str) -> list[Line]:
    steps, values = thinned(*series(facts.train, key, gaps=True))
    if not any(map(math.isfinite, values)):
        return []
    if len(values) < _FEWEST_TO_SMOOTH or key == "learning_rate":
        return [Line(steps, values, "train")]
    return [Line(steps, values, "train", "faint"), Line(steps, smoothed(values, max(5, len(values) // 10)), "train")]


def series(rows: Sequence[Mapping[str, Any]], key: str, *, gaps: bool = False) -> tuple[list[float], list[float]]:
    """Steps and values; a row without a finite value is NaN with `gaps`, and left out otherwise."""
    steps: list[float] = []
    values: list[float] = []
    for row in rows:
        step, value = number(row.get("step")), number(row.get(key))
        if step is not None and (value is not None or gaps):
            steps.append(step)
            values.append(math.nan if value is None else value)
    return steps, values


def _band(values: Sequence[float], count: int | None) -> tuple[list[float] | None, list[float] | None]:
    intervals = [Share(value, count).interval for value in values]
    known = [interval for interval in intervals if interval is not None]
    if len(known) != len(intervals):
        return None, None
    return [interval.low for interval in known], [interval.high for interval in known]


def length_chart(facts: RunFacts) -> Chart | None:
    """Lengths of the sample answers before and after."""
    before, after = numbers(facts.samples, "before_tokens"), numbers(facts.samples, "after_tokens")
    if not after:
        return None
    bars = [Bars(after, "after", median(after), filled=False)]
    keys = [Key("after", "line", f"after, median {tokens(median(after))}")]
    if before:
        bars.insert(0, Bars(before, "before", median(before), filled=True))
        keys.insert(0, Key("before", "block", f"before, median {tokens(median(before))}"))
    return Chart(
        "Length of the sampled answers",
        f"{plural(len(after), 'answer')}, in tokens",
        histogram("length", "Answer lengths before and after", bars, xlabel="tokens", ylabel="answers"),
        keys,
        "Dashed lines: medians.",
    )
