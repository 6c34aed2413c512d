"""The top of the report: the main result in a sentence, and key figures."""

from __future__ import annotations

from prefine.formatting import duration, figure, plural, whole
from prefine.intervals import median
from prefine.report.facts import RunFacts, count, number, numbers
from prefine.report.parts import Headline, Tile
from prefine.report.stages.registry import stage_report
from prefine.rounding import two_digits


def headline(facts: RunFacts) -> Headline:
    """The run's main result in plain words."""
    return stage_report(facts).headline(facts) or _training_headline(facts)


def _training_headline(facts: RunFacts) -> Headline:
    losses = numbers(facts.train, "loss")
    if not losses:
        return Headline("This run has recorded no results yet.")
    steps = plural(len(losses), "step")
    return Headline(
        f"In {steps} the training loss went from {figure(losses[0])} to {figure(losses[-1])}.",
        ["Nothing was measured on held-out data, so this does not show whether the model got better."],
    )


def tiles(facts: RunFacts) -> list[Tile]:
    """Known key figures: the stage's results, then the cost of the run."""
    return [*stage_report(facts).tiles(facts), *(tile for tile in _cost_tiles(facts) if tile is not None)]


def _cost_tiles(facts: RunFacts) -> list[Tile | None]:
    seconds = number(facts.manifest.get("seconds"))
    steps = max((count(row.get("step")) or 0 for row in facts.train), default=0)
    learned = sum(numbers(facts.train, "tokens"))
    speed, memory = (
        median(numbers(facts.train, "tokens_per_s")),
        max(numbers(facts.train, "peak_memory_gb"), default=None),
    )
    return [
        Tile("Time", duration(seconds), note="from start to report") if seconds is not None else None,
        Tile("Trained on", whole(learned), "tokens", note=f"in {plural(steps, 'step')}") if learned else None,
        Tile("Speed", two_digits(speed), "tokens/s", note="median of the steps") if speed is not None else None,
        Tile("Peak memory", figure(memory, 1), "GB", note="while training") if memory is not None else None,
    ]
