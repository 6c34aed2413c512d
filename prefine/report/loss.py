"""The held-out loss: its change paired by answer, and the perplexity of a token loss."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from prefine.formatting import INTERVAL, figure, figure_range, plural
from prefine.intervals import Interval, Mean, mean, ratio_change
from prefine.report.facts import RunFacts, count, differences, number, numbers
from prefine.report.parts import Caution, Headline, Tile, as_before, change_line, change_sentence

_LOSSES = ("before_loss", "after_loss")
# exp of a larger loss is not worth showing.
_LARGEST_LOSS = 50.0
_RISE_OF_LOSS = 0.02


def loss_headline(facts: RunFacts, *, noun: str = "answer", token_loss: bool = False) -> Headline | None:
    """The held-out loss or its perplexity, before and after; None if it was not measured.

    Args:
        noun: for a held-out record.
        token_loss: whether the loss is the mean negative log-likelihood of a token, in nats.
    """
    before, after = number(facts.before.get("loss")), number(facts.after.get("loss"))
    if after is None:
        return None
    answers, unit = held_out(facts, noun), " nats per token" if token_loss else ""
    if before is None:
        return Headline(f"On {answers} the model’s loss is {figure(after)}{unit}.", ["The loss before is not known."])
    change = loss_change(facts)
    interval = None if change is None else change.interval
    first, now = (_perplexity(figures, token_loss) for figures in (facts.before, facts.after))
    if first is None or now is None:
        found = change_sentence(f"the loss of {answers}", before, after, interval, lambda loss: f"{figure(loss)}{unit}")
        return Headline(f"{found}.", _change_lines(facts, token_loss))
    found = change_sentence(f"the perplexity of {answers}", first, now, interval, lambda value: figure(value, 1))
    loss = f"Loss: {figure(before)}{unit} before, {figure(after)} after."
    return Headline(f"{found}.", [loss, *_change_lines(facts, token_loss), kept_line(facts)])


def loss_change(facts: RunFacts) -> Mean | None:
    """The change of the held-out loss with its interval, paired by answer; None without the loss of each answer."""
    rows = [row for row in facts.answers if None not in (number(row.get("before_loss")), number(row.get("after_loss")))]
    sizes = numbers(rows, "tokens")
    if not rows or len(sizes) != len(rows):
        return mean(differences(rows, "before_loss", "after_loss"))
    before, after = ([loss * size for loss, size in zip(numbers(rows, key), sizes, strict=True)] for key in _LOSSES)
    return ratio_change(before, after, sizes)


def _change_lines(facts: RunFacts, token_loss: bool) -> list[str]:
    change = loss_change(facts)
    if change is None or change.interval is None:
        return ["The run recorded no loss for each answer, so whether this is more than chance is not known."]
    ratio = _perplexity_ratio(facts) if token_loss else ""
    found = [f"The perplexity is now {ratio}."] if ratio else []
    return [change_line("the loss", change, "paired by answer", 3), *found]


def _perplexity(figures: Mapping[str, Any], token_loss: bool) -> float | None:
    """The recorded perplexity, or the exponential of a token loss."""
    recorded, loss = number(figures.get("perplexity")), number(figures.get("loss"))
    if recorded is not None or not token_loss or loss is None or loss > _LARGEST_LOSS:
        return recorded
    return math.exp(loss)


def held_out(facts: RunFacts, noun: str) -> str:
    """The held-out records with their number, if known: 45 held-out pairs."""
    if facts.heldout_count is None:
        return f"held-out {noun}s"
    return plural(facts.heldout_count, f"held-out {noun}")


def loss_tile(facts: RunFacts, unit: str = "") -> list[Tile]:
    """The held-out loss."""
    before, after = number(facts.before.get("loss")), number(facts.after.get("loss"))
    return [] if after is None else [Tile("Held-out loss", figure(after), unit, as_before(figure(before)))]


def loss_tiles(facts: RunFacts, *, token_loss: bool) -> list[Tile]:
    """The held-out loss and its perplexity."""
    found = loss_tile(facts, "nats per token" if token_loss else "")
    first, now = (_perplexity(figures, token_loss) for figures in (facts.before, facts.after))
    if now is None:
        return found
    ratio = _perplexity_ratio(facts) if token_loss else ""
    return [*found, Tile("Perplexity", figure(now, 1), before=as_before(figure(first, 1)), note=ratio)]


def _perplexity_ratio(facts: RunFacts) -> str:
    """The ratio with its interval, as text; empty if unknown."""
    change = loss_change(facts)
    if change is None or change.interval is None:
        return ""
    if max(abs(change.interval.low), abs(change.interval.high)) > _LARGEST_LOSS:
        return ""
    ends = Interval(math.exp(change.interval.low), math.exp(change.interval.high))
    return f"{figure(math.exp(change.value), 2)} times what it was ({INTERVAL} {figure_range(ends)})"


def kept_line(facts: RunFacts) -> str:
    """The step of the kept weights, if it is not the last one."""
    steps = [step for row in facts.heldout if (step := count(row.get("step"))) is not None]
    if facts.kept_step is None or not steps or facts.kept_step == steps[-1]:
        return ""
    return f"The weights of step {facts.kept_step} were kept, where the held-out loss was lowest."


def loss_rises(facts: RunFacts) -> Iterator[Caution]:
    """The held-out loss rose again, and the weights of its minimum were not kept."""
    measured = [
        (loss, step)
        for row in facts.heldout
        if (loss := number(row.get("loss"))) is not None and (step := count(row.get("step"))) is not None
    ]
    if len(measured) < 3:
        return
    (least, best), (last, step) = min(measured), measured[-1]
    if facts.kept_step != best and last > least + _RISE_OF_LOSS * abs(least):
        yield Caution(
            f"The held-out loss was lowest at step {best} ({figure(least)}); at step {step} it is {figure(last)}.",
            "If it stays higher, the later steps memorised the training rows. Train for fewer steps, with a "
            "smaller learning rate, or with training.keep_best.",
        )
