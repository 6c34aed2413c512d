"""The report's charts: which figures of a run are drawn, under which title, with which key."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from prefine.formatting import INTERVAL, figure, figure_range, percent, plural, tokens
from prefine.intervals import Share, mean, median
from prefine.report.facts import RunFacts, mapping, number, numbers
from prefine.report.plots import Bars, Ink, Line, histogram, line_chart, shift_chart, smoothed, thinned

_FEWEST_TO_SMOOTH = 30


@dataclass(frozen=True)
class Key:
    """One entry of a chart's key.

    Attributes:
        mark: the look of the swatch: line, dashed, dotted, dot, diamond or block.
    """

    ink: Ink
    mark: str
    label: str


@dataclass(frozen=True)
class Chart:
    """A drawing with the words around it. Numbers stand in the title, so that nobody must read them off an axis."""

    title: str
    subtitle: str
    drawing: Markup
    keys: list[Key] = field(default_factory=list)
    note: str = ""


_TRAINING = Key("train", "line", "training")
_HELD_OUT = Key("after", "line", "held-out")


def learning_charts(facts: RunFacts) -> list[Chart]:
    """How loss and quality went over the steps; a chart without figures is left out."""
    if facts.is_preference:
        found = [_loss_chart(facts), _accuracy_chart(facts), _margin_chart(facts)]
    else:
        found = [
            _loss_chart(facts),
            _training_chart(facts, "grad_norm", "Gradient norm", "before clipping"),
            _training_chart(facts, "learning_rate", "Learning rate", "as scheduled"),
        ]
    return [chart for chart in found if chart is not None]


def _loss_chart(facts: RunFacts) -> Chart | None:
    lines, keys = _lines(facts, "loss")
    if not lines:
        return None
    units = {"sft": "nats per token", "reward": "training: the objective; held-out: log-loss, nats; a coin’s is ln 2"}
    unit = units.get(facts.stage) or f"the objective’s own unit{_loss_at_the_start(facts)}"
    return Chart(_title("Loss", facts, "loss"), unit, line_chart("loss", "Loss over steps", lines), keys)


def _loss_at_the_start(facts: RunFacts) -> str:
    """What a preference objective amounts to while policy and reference agree; empty where other terms are added."""
    section = mapping(mapping(facts.manifest.get("recipe")).get("dpo"))
    loss, beta = section.get("loss"), number(section.get("beta"))
    if number(section.get("nll_weight")):
        return ""
    if loss == "ipo" and beta:
        return f"; at the start 1 / (4 β²) = {figure(0.25 / beta**2)}"
    starts = {"sigmoid": "ln 2", "conservative": "ln 2", "robust": "ln 2", "hinge": "1"}
    return f"; at the start {starts[loss]}" if isinstance(loss, str) and loss in starts else ""


def _accuracy_chart(facts: RunFacts) -> Chart | None:
    facts = _without_ties(facts)
    lines, keys = _lines(facts, "accuracy")
    if not lines:
        return None
    found = [Share(value, facts.heldout_count) for value in numbers(facts.heldout, "accuracy") if 0 <= value <= 1]
    title = f"Accuracy: held-out {percent(found[-1].value)}" if found else "Accuracy"
    drawing = line_chart("accuracy", "Accuracy over steps", lines, percent=True, reference=0.5)
    note = f"Shaded: {INTERVAL} of each held-out figure." if any(line.low for line in lines) else ""
    keys = [*keys, Key("muted", "dotted", "a coin")]
    scored = "share of pairs whose preferred answer has the higher score"
    if facts.stage != "reward":
        scored = "share of pairs whose preferred answer has the higher log-probability per token"
    moved = f"share of pairs moved towards the preferred answer{', per token' if facts.per_token else ''}"
    subtitle = scored if facts.stage == "reward" or not facts.has_reference else moved
    return Chart(title, subtitle, drawing, keys, note)


def _without_ties(facts: RunFacts) -> RunFacts:
    """Without accuracies from before the first update: all rewards are 0 (but for rounding), and nothing is ranked."""
    if not facts.has_reference:
        return facts
    heldout = [row for row in facts.heldout if number(row.get("step")) != 0]
    train = [{**row, "accuracy": None} if number(row.get("margin")) == 0 else row for row in facts.train]
    return dataclasses.replace(facts, heldout=heldout, train=train)


def _margin_chart(facts: RunFacts) -> Chart | None:
    lines, keys = _lines(facts, "margin")
    if not lines:
        return None
    drawing = line_chart("margin", "Reward margin over steps", lines, reference=0)
    return Chart(_title("Margin", facts, "margin", 2), f"mean reward margin, {_nats(facts)}", drawing, keys)


def _training_chart(facts: RunFacts, key: str, name: str, subtitle: str) -> Chart | None:
    lines = _training_lines(facts, key)
    if not lines:
        return None
    peak = max(numbers(facts.train, key))
    return Chart(f"{name}: at most {figure(peak)}", subtitle, line_chart(key, f"{name} over steps", lines), [_TRAINING])


def metric_chart(facts: RunFacts, key: str, name: str, subtitle: str, decimals: int | None = 2) -> Chart | None:
    """One figure over the steps, in training and held-out; None where there is none."""
    lines, keys = _lines(facts, key)
    if not lines:
        return None
    return Chart(_title(name, facts, key, decimals), subtitle, line_chart(key, f"{name} over steps", lines), keys)


def _title(name: str, facts: RunFacts, key: str, decimals: int | None = None) -> str:
    found = numbers(facts.heldout, key)
    where = "held-out " if found else "training "
    found = found or numbers(facts.train, key)
    ends = " → ".join(figure(value, decimals) for value in dict.fromkeys((found[0], found[-1])))
    return f"{name}: {where}{ends}"


def _lines(facts: RunFacts, key: str) -> tuple[list[Line], list[Key]]:
    """The training curve of one figure, smoothed if long, and the held-out one with intervals if it is a share."""
    training = _training_lines(facts, key)
    lines, keys = [*training], [_TRAINING] if training else []
    steps, values = _series(facts.heldout, key)
    if steps:
        low, high = _band(values, facts.heldout_count) if key == "accuracy" else (None, None)
        lines.append(Line(steps, values, "after", markers=len(steps) <= 40, low=low, high=high))
        keys.append(_HELD_OUT)
    return lines, keys


def _training_lines(facts: RunFacts, key: str) -> list[Line]:
    steps, values = thinned(*_series(facts.train, key, gaps=True))
    if not any(map(math.isfinite, values)):
        return []
    if len(values) < _FEWEST_TO_SMOOTH or key == "learning_rate":
        return [Line(steps, values, "train")]
    return [Line(steps, values, "train", "faint"), Line(steps, smoothed(values, max(5, len(values) // 10)), "train")]


def _series(rows: Sequence[Mapping[str, Any]], key: str, *, gaps: bool = False) -> tuple[list[float], list[float]]:
    """Steps and values; a row without a finite value is NaN if gaps are to be seen, and left out otherwise."""
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


def logp_chart(facts: RunFacts) -> Chart | None:
    """How the log-probabilities of held-out chosen and rejected answers moved from the first evaluation on.

    Their change, not their level: the levels lie tens of nats apart and would hide it.
    """
    both: dict[Ink, tuple[list[float], list[float]]] = {
        "chosen": _series(facts.heldout, "logp_chosen"),
        "rejected": _series(facts.heldout, "logp_rejected"),
    }
    if not all(values for _, values in both.values()):
        return None
    lines = [
        Line(
            steps, [value - values[0] for value in values], ink, "solid" if ink == "chosen" else "dashed", markers=True
        )
        for ink, (steps, values) in both.items()
    ]
    moves = [f"{ink} {figure(values[-1] - values[0], 1, signed=True)}" for ink, (_, values) in both.items()]
    levels = "; ".join(f"{ink} {figure(values[0], 1)} → {figure(values[-1], 1)}" for ink, (_, values) in both.items())
    return Chart(
        f"{', '.join(moves).capitalize()} nats",
        "mean change of held-out log-probability, summed over an answer",
        line_chart("logp", "Change of log-probabilities over steps", lines, reference=0),
        [Key("chosen", "line", "chosen"), Key("rejected", "dashed", "rejected")],
        f"Mean log-probability: {levels} nats.",
    )


def shift_points(facts: RunFacts) -> list[tuple[float, float]]:
    """(chosen, rejected) changes of log-probability of the held-out pairs that have both, as the objective sees them.

    Where the objective compares log-probabilities per token the changes are divided by the answers' tokens: whether a
    pair moved the right way is then what the run's accuracy counts, and not another comparison of the same pair.
    """
    found = []
    for pair in facts.pairs:
        sides = [number(pair.get(f"{side}_shift")) for side in ("chosen", "rejected")]
        if facts.per_token:
            sizes = [number(pair.get(f"{side}_tokens")) for side in ("chosen", "rejected")]
            sides = [
                shift / size if shift is not None and size else None for shift, size in zip(sides, sizes, strict=True)
            ]
        chosen, rejected = sides
        if chosen is not None and rejected is not None:
            found.append((chosen, rejected))
    return found


def _nats(facts: RunFacts) -> str:
    return "nats per token" if facts.per_token else "nats"


def pair_chart(facts: RunFacts) -> Chart | None:
    """Each held-out pair by how far its two answers moved."""
    points = shift_points(facts)
    if not points:
        return None
    gained = sum(chosen > rejected for chosen, rejected in points)
    return Chart(
        f"{gained} of {plural(len(points), 'pair')} moved towards the preferred answer",
        f"change of log-probability, after − before, {_nats(facts)}",
        shift_chart("shift", "Held-out pairs by the change of both log-probabilities", points, _nats(facts)),
        [Key("chosen", "dot", "chosen gained on rejected"), Key("rejected", "diamond", "it did not")],
        "On the dotted line both moved alike." + (" A sample of the pairs is drawn." if len(points) > 400 else ""),
    )


@dataclass(frozen=True)
class Direction:
    """How many held-out pairs moved in one of the four directions."""

    chosen: str
    rejected: str
    count: int
    share: str
    meaning: str


def directions(facts: RunFacts) -> list[Direction]:
    """The held-out pairs by the direction in which their two answers moved."""
    points = shift_points(facts)
    cases = (
        (True, False, "as wanted"),
        (True, True, "both more likely"),
        (False, False, "both less likely"),
        (False, True, "the wrong way round"),
    )
    found = []
    for chosen_up, rejected_up, meaning in cases:
        hits = sum((chosen > 0) is chosen_up and (rejected > 0) is rejected_up for chosen, rejected in points)
        words = ["up" if up else "down" for up in (chosen_up, rejected_up)]
        found.append(Direction(words[0], words[1], hits, percent(hits / len(points)), meaning) if points else None)
    return [direction for direction in found if direction is not None]


def shift_summary(facts: RunFacts) -> str:
    """The mean shifts of both answers with their intervals."""
    parts, points = [], shift_points(facts)
    for name, values in (("Chosen", [c for c, _ in points]), ("rejected", [r for _, r in points])):
        found = mean(values)
        if found is not None:
            decimals = 3 if facts.per_token else 1
            spread = figure_range(found.interval, decimals, signed=True) if found.interval else ""
            size = figure(found.value, decimals, signed=True)
            parts.append(
                f"{name} answers moved by {size} {_nats(facts)} on average{f' ({INTERVAL} {spread})' if spread else ''}"
            )
    return f"{', '.join(parts)}." if parts else ""


def length_chart(facts: RunFacts) -> Chart | None:
    """How long the sampled answers are before and after."""
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
