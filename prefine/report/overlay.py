"""Curves of several runs in one chart, with the guards' events, and the differences of their recipes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from prefine.formatting import figure
from prefine.report.charts import Chart, Key, drawn, series
from prefine.report.facts import RunFacts, count, mapping
from prefine.report.guard_events import GuardEvent, guard_events
from prefine.report.plots import Ink, Line, line_chart, smoothed, thinned
from prefine.report.stages.registry import stage_report

_FEWEST_TO_SMOOTH = 30
_MOST_MARKERS = 40
# Key of metrics.jsonl -> title, unit.
_CURVES = {
    "accuracy": ("Accuracy", "share of pairs"),
    "margin": ("Margin", "mean reward margin"),
    "score": ("Reward", "weighted scores of the sources, before penalties"),
    "judge": ("Judge", "mean score of the second reward model, never optimised"),
    "kl_k3": ("KL", "to the reference, k3, nats per token"),
    "entropy": ("Entropy", "nats per token"),
    "response_tokens": ("Answer length", "mean, tokens"),
    "degenerate": ("Degenerate answers", "share that is blank, stuck or loops"),
    "grad_norm": ("Gradient norm", "before clipping"),
    "learning_rate": ("Learning rate", "as scheduled"),
}
_SHARES = {"accuracy", "degenerate"}


@dataclass(frozen=True)
class NamedRun:
    """A run with what distinguishes it in a chart.

    Attributes:
        name: unique among the runs of a page.
    """

    name: str
    facts: RunFacts
    ink: Ink
    style: Literal["solid", "dashed"] = "solid"


def overlaid(runs: Sequence[NamedRun]) -> list[Chart]:
    """A chart for each figure that a run recorded; the loss has one for each stage, as theirs are not comparable."""
    losses = [
        _chart(f"curve-loss-{place}", "loss", f"Loss, {stage}" if stage else "Loss", _loss_unit(members), members)
        for place, (stage, members) in enumerate(_by_stage(runs))
    ]
    return drawn(*losses, *(_chart(f"curve-{key}", key, title, unit, runs) for key, (title, unit) in _CURVES.items()))


def _loss_unit(runs: Sequence[NamedRun]) -> str:
    facts = runs[0].facts
    return stage_report(facts).loss_unit(facts)


def _by_stage(runs: Sequence[NamedRun]) -> list[tuple[str, Sequence[NamedRun]]]:
    stages = list(dict.fromkeys(run.facts.stage for run in runs))
    if len(stages) == 1:
        return [("", runs)]
    return [(stage or "unknown stage", [run for run in runs if run.facts.stage == stage]) for stage in stages]


def _chart(name: str, key: str, title: str, unit: str, runs: Sequence[NamedRun]) -> Chart | None:
    lines: list[Line] = []
    keys: list[Key] = []
    kinds: set[str] = set()
    for run in runs:
        steps, values, kind = _curve(run.facts, key)
        if not values:
            continue
        kinds.add(kind)
        lines.append(
            Line(
                steps,
                values,
                run.ink,
                run.style,
                markers=kind == "held-out" and len(steps) <= _MOST_MARKERS,
                events=_event_steps(run.facts),
            )
        )
        ends = " → ".join(figure(value) for value in dict.fromkeys((values[0], values[-1])))
        keys.append(Key(run.ink, "dashed" if run.style == "dashed" else "line", f"{run.name}: {ends}"))
    if not lines:
        return None
    where = "held-out" if kinds == {"held-out"} else "training" if kinds == {"training"} else "held-out or training"
    note = "Dotted: a guard acted." if any(line.events for line in lines) else ""
    drawing = line_chart(name, f"{title} over steps", lines, percent=key in _SHARES)
    return Chart(title, f"{where}; {unit}", drawing, keys, note)


def _curve(facts: RunFacts, key: str) -> tuple[list[float], list[float], str]:
    """Held-out values if the run has any, else those of training, smoothed if there are many."""
    steps, values = series(facts.heldout, key)
    if values:
        return steps, values, "held-out"
    steps, values = thinned(*series(facts.train, key))
    if len(values) >= _FEWEST_TO_SMOOTH and key != "learning_rate":
        values = smoothed(values, max(5, len(values) // 10))
    return steps, values, "training"


def _event_steps(facts: RunFacts) -> list[float]:
    return [float(step) for event in facts.guard_events if (step := count(event.get("at_step"))) is not None]


@dataclass(frozen=True)
class RunEvent:
    """A guard's event and the name of its run."""

    run: str
    event: GuardEvent


def events_of(runs: Sequence[NamedRun]) -> list[RunEvent]:
    """The guards' events of all runs, run by run."""
    return [RunEvent(run.name, event) for run in runs for event in guard_events(run.facts)]


@dataclass(frozen=True)
class SettingRow:
    """A setting of the recipes: its value in each, and whether they differ."""

    name: str
    values: list[str]
    differs: bool


def recipe_rows(recipes: Sequence[Mapping[str, Any]]) -> list[SettingRow]:
    """All settings of several recipes, in the order of the first that has each."""
    flat = [dict(_flat(recipe)) for recipe in recipes]
    names = dict.fromkeys(name for settings in flat for name in settings)
    rows = []
    for name in names:
        values = [settings.get(name, "not set") for settings in flat]
        rows.append(SettingRow(name, values, len(set(values)) > 1))
    return rows


def _flat(value: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for key, item in value.items():
        name = f"{before}{key}"
        if mapping(item):
            yield from _flat(mapping(item), f"{name}.")
        else:
            yield name, item if isinstance(item, str) else json.dumps(item, ensure_ascii=False, default=str)
