"""What the held-out loss of a run came to: its change paired by answer, and the perplexity that it amounts to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from prefine.formatting import INTERVAL, figure, figure_range, plural
from prefine.intervals import Interval, Mean, mean, ratio_change
from prefine.report.facts import RunFacts, count, differences, number, numbers
from prefine.report.parts import Headline, Tile, as_before, change_line, change_sentence

_LOSSES = ("before_loss", "after_loss")
# Beyond it e to a loss is no figure to show.
_LARGEST_LOSS = 50.0


def loss_headline(facts: RunFacts) -> Headline | None:
    before, after = number(facts.before.get("loss")), number(facts.after.get("loss"))
    if after is None:
        return None
    answers, unit = held_out(facts, "pair" if facts.is_preference else "answer"), _loss_unit(facts)
    if before is None:
        return Headline(f"On {answers} the model’s loss is {figure(after)}{unit}.", ["The loss before is not known."])
    change = loss_change(facts)
    interval = None if change is None else change.interval
    first, now = perplexity(facts, facts.before), perplexity(facts, facts.after)
    if first is None or now is None:
        told = change_sentence(f"the loss of {answers}", before, after, interval, lambda loss: f"{figure(loss)}{unit}")
        return Headline(f"{told}.", _loss_lines(facts))
    told = change_sentence(f"the perplexity of {answers}", first, now, interval, lambda value: figure(value, 1))
    loss = f"Loss: {figure(before)}{unit} before, {figure(after)} after."
    return Headline(f"{told}.", [loss, *_loss_lines(facts), kept_line(facts)])


def loss_change(facts: RunFacts) -> Mean | None:
    """By how much the held-out loss has changed, paired by answer, as the run recorded it or its answers say."""
    rows = [row for row in facts.answers if None not in (number(row.get("before_loss")), number(row.get("after_loss")))]
    sizes = numbers(rows, "tokens")
    if not rows or len(sizes) != len(rows):
        return mean(differences(rows, "before_loss", "after_loss"))
    before, after = ([loss * size for loss, size in zip(numbers(rows, key), sizes, strict=True)] for key in _LOSSES)
    return ratio_change(before, after, sizes)


def _loss_lines(facts: RunFacts) -> list[str]:
    change = loss_change(facts)
    if change is None or change.interval is None:
        return ["The run recorded no loss for each answer, so whether this is more than chance is not known."]
    ratio = perplexity_ratio(facts)
    told = [f"The perplexity is now {ratio}."] if ratio else []
    return [change_line("the loss", change, "paired by answer", 3), *told]


def perplexity(facts: RunFacts, figures: Mapping[str, Any]) -> float | None:
    """The recorded perplexity, or the one that a token loss amounts to."""
    recorded, loss = number(figures.get("perplexity")), number(figures.get("loss"))
    if recorded is not None or facts.stage != "sft" or loss is None or loss > _LARGEST_LOSS:
        return recorded
    return math.exp(loss)


def held_out(facts: RunFacts, noun: str) -> str:
    if facts.heldout_count is None:
        return f"held-out {noun}s"
    return plural(facts.heldout_count, f"held-out {noun}")


def _loss_unit(facts: RunFacts) -> str:
    return " nats per token" if facts.stage == "sft" else ""


def loss_tiles(facts: RunFacts) -> list[Tile | None]:
    before, after = number(facts.before.get("loss")), number(facts.after.get("loss"))
    unit = _loss_unit(facts).strip()
    found = [Tile("Held-out loss", figure(after), unit, as_before(figure(before))) if after is not None else None]
    now, first = perplexity(facts, facts.after), perplexity(facts, facts.before)
    if now is not None and not facts.is_preference:
        found.append(
            Tile("Perplexity", figure(now, 1), before=as_before(figure(first, 1)), note=perplexity_ratio(facts))
        )
    return found


def perplexity_ratio(facts: RunFacts) -> str:
    """0.30 times what it was, with the interval; empty where it is not known, and for losses that are no log-loss."""
    change = loss_change(facts)
    if facts.stage != "sft" or change is None or change.interval is None:
        return ""
    if max(abs(change.interval.low), abs(change.interval.high)) > _LARGEST_LOSS:
        return ""
    ends = Interval(math.exp(change.interval.low), math.exp(change.interval.high))
    return f"{figure(math.exp(change.value), 2)} times what it was ({INTERVAL} {figure_range(ends)})"


def kept_line(facts: RunFacts) -> str:
    steps = [step for row in facts.heldout if (step := count(row.get("step"))) is not None]
    if facts.kept_step is None or not steps or facts.kept_step == steps[-1]:
        return ""
    return f"The weights of step {facts.kept_step} were kept, where the held-out loss was lowest."
