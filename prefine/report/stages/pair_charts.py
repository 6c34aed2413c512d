"""Charts of runs on pairs: accuracy, margin, and changes of both answers' log-probabilities."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from prefine.formatting import INTERVAL, figure, figure_range, percent, plural
from prefine.intervals import Share, mean
from prefine.report.charts import Chart, Key, chart_lines, chart_title, series
from prefine.report.facts import RunFacts, number, numbers
from prefine.report.plots import Ink, Line, line_chart, shift_chart
from prefine.report.stages.pairs import nats, per_token


def accuracy_chart(facts: RunFacts, meaning: str, *, has_reference: bool) -> Chart | None:
    """The share of correct pairs, with intervals of the held-out shares.

    Args:
        meaning: when a pair is correct.
        has_reference: as for `pairs.shares`.
    """
    if has_reference:
        facts = _without_ties(facts)
    lines, keys = chart_lines(facts, "accuracy")
    if not lines:
        return None
    found = [Share(value, facts.heldout_count) for value in numbers(facts.heldout, "accuracy") if 0 <= value <= 1]
    title = f"Accuracy: held-out {percent(found[-1].value)}" if found else "Accuracy"
    drawing = line_chart("accuracy", "Accuracy over steps", lines, percent=True, reference=0.5)
    note = f"Shaded: {INTERVAL} of each held-out figure." if any(line.low for line in lines) else ""
    keys = [*keys, Key("muted", "dotted", "chance")]
    return Chart(title, meaning, drawing, keys, note)


def _without_ties(facts: RunFacts) -> RunFacts:
    """Without accuracies before the first update, when all rewards are 0 up to rounding and nothing is ranked."""
    heldout = [row for row in facts.heldout if number(row.get("step")) != 0]
    train = [{**row, "accuracy": None} if number(row.get("margin")) == 0 else row for row in facts.train]
    return dataclasses.replace(facts, heldout=heldout, train=train)


def margin_chart(facts: RunFacts) -> Chart | None:
    """The mean reward margin."""
    lines, keys = chart_lines(facts, "margin")
    if not lines:
        return None
    drawing = line_chart("margin", "Reward margin over steps", lines, reference=0)
    return Chart(chart_title("Margin", facts, "margin", 2), f"mean reward margin, {nats(facts)}", drawing, keys)


def logp_chart(facts: RunFacts) -> Chart | None:
    """Changes of the log-probabilities of held-out chosen and rejected answers since the first evaluation.

    Changes, not levels: the levels differ by tens of nats, which would hide the changes.
    """
    both: dict[Ink, tuple[list[float], list[float]]] = {
        "chosen": series(facts.heldout, "logp_chosen"),
        "rejected": series(facts.heldout, "logp_rejected"),
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

    If the objective compares log-probabilities per token, the changes are divided by the answers' tokens, so that the
    chart agrees with the run's accuracy.
    """
    found = []
    for pair in facts.pairs:
        sides = [number(pair.get(f"{side}_shift")) for side in ("chosen", "rejected")]
        if per_token(facts):
            sizes = [number(pair.get(f"{side}_tokens")) for side in ("chosen", "rejected")]
            sides = [
                shift / size if shift is not None and size else None for shift, size in zip(sides, sizes, strict=True)
            ]
        chosen, rejected = sides
        if chosen is not None and rejected is not None:
            found.append((chosen, rejected))
    return found


def pair_chart(facts: RunFacts) -> Chart | None:
    """Each held-out pair by the changes of its two answers."""
    points = shift_points(facts)
    if not points:
        return None
    gained = sum(chosen > rejected for chosen, rejected in points)
    return Chart(
        f"{gained} of {plural(len(points), 'pair')} moved towards the preferred answer",
        f"change of log-probability, after − before, {nats(facts)}",
        shift_chart("shift", "Held-out pairs by the change of both log-probabilities", points, nats(facts)),
        [Key("chosen", "dot", "chosen gained on rejected"), Key("rejected", "diamond", "it did not")],
        "On the dotted line both changed equally." + (" A sample of the pairs is drawn." if len(points) > 400 else ""),
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
        (False, True, "the wrong way"),
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
            decimals = 3 if per_token(facts) else 1
            spread = figure_range(found.interval, decimals, signed=True) if found.interval else ""
            size = figure(found.value, decimals, signed=True)
            parts.append(
                f"{name} answers moved by {size} {nats(facts)} on average{f' ({INTERVAL} {spread})' if spread else ''}"
            )
    return f"{', '.join(parts)}." if parts else ""
