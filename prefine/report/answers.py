"""Answers before and after training: lengths and endings, and warnings if they got worse."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from prefine.formatting import INTERVAL, figure_range, percent, plural, tokens, whole
from prefine.intervals import Interval, mean, mean_change, median
from prefine.report.facts import RunFacts, by_prompt, mapping, number, numbers
from prefine.report.parts import Caution, Tile, as_before

_JUMP_OF_LENGTH = 0.25
_MANY_CUT = 0.2
_LOSS_OF_ENDINGS = 0.05
_MORE_DEGENERATE = 0.02


@dataclass(frozen=True)
class SampleLengths:
    """Lengths in tokens and endings of the answers to the sample prompts.

    Attributes:
        ended: share that ended by itself, not at the limit.
        degenerate: share that is blank, stuck or looping.
    """

    mean_tokens: float | None
    median_tokens: float | None
    ended: float | None
    degenerate: float | None


def lengths(facts: RunFacts, when: str) -> SampleLengths:
    """Lengths of the sample answers "before" or "after", as evaluation.json or else samples.jsonl gives them."""
    recorded = mapping(mapping(facts.evaluation.get("generation")).get(when))
    written = numbers(facts.samples, f"{when}_tokens")
    average = mean(written)
    ends = [end for sample in facts.samples if isinstance(end := sample.get(f"{when}_ended"), bool)]
    faults = [sample[key] is not None for sample in facts.samples if (key := f"{when}_degenerate") in sample]
    measured = (
        average.value if average else None,
        median(written),
        sum(ends) / len(ends) if ends else None,
        sum(faults) / len(faults) if faults else None,
    )
    keys = ("mean_tokens", "median_tokens", "ended", "degenerate")
    return SampleLengths(
        *(
            mine if (mine := number(recorded.get(key))) is not None else theirs
            for key, theirs in zip(keys, measured, strict=True)
        )
    )


def sample_tiles(facts: RunFacts) -> list[Tile]:
    """Tiles on length and endings of the sample answers."""
    was, now = lengths(facts, "before"), lengths(facts, "after")
    found = []
    if now.median_tokens is not None:
        found.append(Tile("Median answer", tokens(now.median_tokens), "tokens", as_before(tokens(was.median_tokens))))
    if now.ended is not None:
        found.append(Tile("Answers ended by themselves", percent(now.ended), before=as_before(percent(was.ended))))
    return found


@dataclass(frozen=True)
class _Change:
    """A figure before and after, and the interval of its change over prompts, if known."""

    before: float | None
    after: float | None
    interval: Interval | None

    @property
    def shown(self) -> bool:
        """Whether chance does not explain the change, as far as known."""
        return self.interval is None or not self.interval.contains(0)

    def in_brackets(self) -> str:
        """The interval of a change in tokens, in brackets; empty if unknown."""
        return f" ({INTERVAL} of the change {figure_range(self.interval, 0, signed=True)})" if self.interval else ""


def answer_cautions(facts: RunFacts, *, heldout: bool = False) -> Iterator[Caution]:
    """Warnings on jumps in length, answers that no longer end, and degenerate answers.

    Args:
        heldout: judge by the answers to held-out prompts (RunFacts.responses), not by those to the sample prompts.
    """
    yield from _length(_change(facts, "tokens", "mean_tokens", "response_tokens", heldout), heldout)
    yield from _endings(_change(facts, "ended", "ended", "ended", heldout), heldout)
    yield from _degenerate(facts, heldout)


def _change(facts: RunFacts, key: str, of_samples: str, of_heldout: str, heldout: bool) -> _Change:
    rows = facts.responses if heldout else facts.samples
    change = mean_change(*by_prompt(rows, f"before_{key}", f"after_{key}"))
    interval = None if change is None else change.interval
    if heldout:
        return _Change(number(facts.before.get(of_heldout)), number(facts.after.get(of_heldout)), interval)
    before, after = (getattr(lengths(facts, when), of_samples) for when in ("before", "after"))
    return _Change(before, after, interval)


def _length(change: _Change, heldout: bool) -> Iterator[Caution]:
    before, after = change.before, change.after
    if not before or after is None or abs(after - before) <= _JUMP_OF_LENGTH * before or not change.shown:
        return
    which = "Held-out answers" if heldout else "Answers to the sample prompts"
    if after > before:
        yield Caution(
            f"{which} are longer: {whole(after)} tokens on average, {whole(before)} before{change.in_brackets()}.",
            "Compare their content: a preference for longer answers is easily learned."
            + (" reward.length_penalty works against it." if heldout else ""),
        )
    else:
        yield Caution(
            f"{which} are shorter: {whole(after)} tokens on average, {whole(before)} before{change.in_brackets()}.",
            "Read some of them: the reward may favour answers with little content.",
        )


def _endings(change: _Change, heldout: bool) -> Iterator[Caution]:
    before, after = change.before, change.after
    if after is None:
        return
    limit = "rollout.max_new_tokens" if heldout else "report.max_new_tokens"
    which = "held-out answers" if heldout else "answers to the sample prompts"
    if before is not None and after < before - _LOSS_OF_ENDINGS and change.shown:
        yield Caution(
            f"Fewer {which} end by themselves: {percent(after)}, {percent(before)} before.",
            f"Raise reward.missing_eos_value, or {limit} if good answers are longer."
            if heldout
            else "Check that the training data has ends of turns, and that they are supervised.",
        )
    elif 1 - after > _MANY_CUT:
        yield Caution(
            f"{percent(1 - after)} of the {which} were cut at the limit.",
            f"Raise {limit} to judge complete answers.",
        )


def _degenerate(facts: RunFacts, heldout: bool) -> Iterator[Caution]:
    if heldout:
        change = _Change(number(facts.before.get("degenerate")), number(facts.after.get("degenerate")), None)
        rows = facts.responses
    else:
        rows = [row for row in facts.samples if "after_degenerate" in row]
        was, now = (sum(row.get(f"{when}_degenerate") is not None for row in rows) for when in ("before", "after"))
        change = _Change(was / max(1, len(rows)), now / max(1, len(rows)), None)
    if change.before is None or change.after is None or change.after <= change.before + _MORE_DEGENERATE:
        return
    count = round(change.after * len(rows))
    which = "held-out answers" if heldout else "answers to the sample prompts"
    yield Caution(
        f"{count} of {plural(len(rows), which.removesuffix('s'), which)} are blank, stuck or loop, "
        f"{round(change.before * len(rows))} before.",
        "Read them. A smaller learning rate or fewer steps keep the model closer to its start.",
    )
