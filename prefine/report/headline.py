"""What a run came to, in words and key figures: the top of the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prefine.formatting import (
    INTERVAL,
    duration,
    figure,
    figure_range,
    percent,
    percent_range,
    plural,
    tokens,
    whole,
)
from prefine.intervals import Interval, Mean, Share, mean, mean_change, median
from prefine.report.facts import RunFacts, by_prompt, count, mapping, number, numbers
from prefine.report.loss_findings import held_out, kept_line, loss_headline, loss_tiles
from prefine.report.parts import NO_CHANGE, Headline, Tile, as_before
from prefine.report.rl_findings import ppo_headline, ppo_tiles
from prefine.rounding import two_digits

WIDE_INTERVAL = 0.2
"""An interval of a share that is wider than this is called wide on the page."""


@dataclass(frozen=True)
class Whisker:
    """A share with its interval, to be drawn on a scale from 0 to 100 %."""

    when: str
    share: float
    interval: Interval
    text: str


@dataclass(frozen=True)
class ShareScale:
    """One kind of share, after training and before."""

    label: str
    meaning: str
    whiskers: list[Whisker]


@dataclass(frozen=True)
class Shares:
    """The shares of held-out pairs that a preference run is judged by.

    Attributes:
        ranked_before, ranked_after: pairs whose chosen answer the model's own log-probabilities rank first.
        moved: pairs in which training raised the chosen answer against the rejected one: the implicit reward
            accuracy. Before training it is a coin's by construction, so it has no "before".
    """

    ranked_before: Share | None
    ranked_after: Share | None
    moved: Share | None


def shares(facts: RunFacts) -> Shares:
    """Read the shares of a preference run."""
    ranked, moved = "policy_accuracy", _share(facts, facts.after, "accuracy")
    if not facts.has_reference:  # then the implicit reward is the model's own ranking
        ranked, moved = "policy_accuracy" if "policy_accuracy" in facts.after else "accuracy", None
    return Shares(_share(facts, facts.before, ranked), _share(facts, facts.after, ranked), moved)


def _share(facts: RunFacts, figures: Mapping[str, Any], key: str) -> Share | None:
    value = number(figures.get(key))
    return Share(value, facts.heldout_count) if value is not None and 0 <= value <= 1 else None


def headline(facts: RunFacts) -> Headline:
    """The run's main result in plain words."""
    found = _preference_headline(facts) if facts.is_preference else None
    return found or ppo_headline(facts) or loss_headline(facts) or _training_headline(facts)


def _preference_headline(facts: RunFacts) -> Headline | None:
    found = shares(facts)
    pairs = held_out(facts, _record(facts))
    moved = "" if found.moved is None else _moved(found.moved, pairs)
    if found.moved and found.ranked_after:
        sentence = f"{moved}; it {_ranking(facts, found)}."
    elif found.moved:
        sentence = f"{moved}."
    elif found.ranked_after:
        sentence = f"The model {_ranking(facts, found, of=f' of {pairs}')}."
    else:
        return None
    return Headline(sentence, [*_moved_lines(found), *_ranked_lines(facts, found), few_pairs(facts), kept_line(facts)])


def _moved(share: Share, pairs: str) -> str:
    """In how many pairs training moved the model towards the preferred answer, if chance does not explain it."""
    told, interval = percent(share.value), share.interval
    if interval is not None and interval.contains(0.5):
        return f"No move towards the preferred answers shown: {told} of {pairs} moved that way"
    if interval is not None and interval.high < 0.5:
        return f"Training moved the model away from the preferred answers: only {told} of {pairs} moved towards them"
    return f"Training moved the model towards the preferred answer in {told} of {pairs}"


def _record(facts: RunFacts) -> str:
    return "vote" if facts.judged_by_votes else "pair"


def _ranking(facts: RunFacts, found: Shares, of: str = "") -> str:
    judges = "agrees with people on" if facts.judged_by_votes else "ranks the preferred answer first in"
    before, after = found.ranked_before, found.ranked_after
    if after is None:
        return ""
    share = f"{percent(after.value)}{of}"
    if before is None:
        return f"{judges} {share}"
    change = ranked_change(facts, found)
    if change is None or change.interval is None:
        return f"{judges} {share} ({percent(before.value)} before)"
    if change.interval.contains(0):
        return f"{judges} {share} ({percent(before.value)} before: no change shown)"
    way = "up" if change.interval.low > 0 else "down"
    return f"now {judges} {share}, {way} from {percent(before.value)}"


def ranked_change(facts: RunFacts, found: Shares) -> Mean | None:
    """By how much the share of pairs ranked as people did has changed, paired by pair.

    A run that recorded no ranking of each pair has the interval that the two shares' own intervals leave room for.
    """
    before, after = found.ranked_before, found.ranked_after
    if before is None or after is None:
        return None
    paired = mean_change(*by_prompt(facts.pairs, "before_ranked", "after_ranked"))
    if paired is not None and paired.count == facts.heldout_count:
        return paired
    change, room = after.value - before.value, None
    if before.interval is not None and after.interval is not None:
        room = Interval(after.interval.low - before.interval.high, after.interval.high - before.interval.low)
    return Mean(change, after.count or 0, room)


def _moved_lines(found: Shares) -> list[str]:
    if found.moved is None or found.moved.interval is None:
        return []
    return [f"Moved towards it: {_hits(found.moved)}; without any effect it would be {percent(0.5)}."]


def _ranked_lines(facts: RunFacts, found: Shares) -> list[str]:
    before, after = found.ranked_before, found.ranked_after
    right = "Rated as people did" if facts.judged_by_votes else "Ranked first"
    if after is None or after.interval is None:
        return []
    if before is None or before.interval is None:
        return [f"{right}: {_hits(after)}."]
    line = f"{right}: {_hits(after)} now, {_hits(before)} before."
    change = ranked_change(facts, found)
    if change is None or change.interval is None:
        return [line]
    ends = f"{_points(change.interval.low)} to {_points(change.interval.high)}"
    line += f" Change: {_points(change.value)} points ({INTERVAL} {ends})."
    return [f"{line} {NO_CHANGE}" if change.interval.contains(0) else line]


def _points(share: float) -> str:
    return figure(100 * share, 0, signed=True)


def few_pairs(facts: RunFacts) -> str:
    """A sentence for a reader who takes shares of few pairs for exact; empty if no interval is wide."""
    found = shares(facts)
    known = [share for share in (found.moved, found.ranked_after) if share is not None and share.interval is not None]
    if not any(share.interval.width > WIDE_INTERVAL for share in known if share.interval):
        return ""
    intervals = "the interval is wide" if len(known) == 1 else "the intervals are wide"
    return f"{plural(known[0].count or 0, f'held-out {_record(facts)}')}: {intervals}."


def _hits(share: Share) -> str:
    of = "" if share.hits is None else f"{share.hits} of {share.count}, "
    return f"{of}{INTERVAL} {percent_range(share.interval)}" if share.interval else of.rstrip(", ")


def _training_headline(facts: RunFacts) -> Headline:
    losses = numbers(facts.train, "loss")
    if not losses:
        return Headline("This run has recorded no results yet.")
    steps = plural(len(losses), "step")
    return Headline(
        f"In {steps} the training loss went from {figure(losses[0])} to {figure(losses[-1])}.",
        ["Nothing was measured on held-out data: whether the model got better cannot be said from this."],
    )


def scales(facts: RunFacts) -> list[ShareScale]:
    """The shares that have intervals, drawn on scales."""
    if not facts.is_preference:
        return []
    found = shares(facts)
    moved = ShareScale(
        "Moved towards the preferred answer by training",
        f"Its log-probability {'per token ' if facts.per_token else ''}gained on that of the other answer.",
        _whiskers(None, found.moved),
    )
    ranked = ShareScale(
        "Preferred answer ranked first",
        "Its score is higher than the other answer’s."
        if facts.stage == "reward"
        else "The model’s own log-probability per token is higher than the other answer’s.",
        _whiskers(found.ranked_before, found.ranked_after),
    )
    return [scale for scale in (moved, ranked) if scale.whiskers]


def _whiskers(before: Share | None, after: Share | None) -> list[Whisker]:
    return [
        Whisker(when, share.value, share.interval, percent(share.value))
        for when, share in (("before", before), ("after", after))
        if share is not None and share.interval is not None
    ]


def tiles(facts: RunFacts) -> list[Tile]:
    """The key figures, those that are known."""
    results = _preference_tiles(facts) if facts.is_preference else []
    # Of PPO's answers the held-out ones tell more than the few samples do.
    measured = ppo_tiles(facts) if facts.stage == "ppo" else [*loss_tiles(facts), *_length_tiles(facts)]
    found = [*results, *measured, *_cost_tiles(facts)]
    return [tile for tile in found if tile is not None]


def _preference_tiles(facts: RunFacts) -> list[Tile | None]:
    found = shares(facts)
    margin = number(facts.after.get("margin"))
    spread = mean(numbers(facts.pairs, "after_margin"))
    interval = spread.interval if spread and margin is not None else None
    return [
        _share_tile("Moved towards the preferred answer", found.moved, f"{percent(0.5)} without effect"),
        _share_tile(
            "Preferred answer ranked first",
            found.ranked_after,
            as_before(percent(found.ranked_before.value)) if found.ranked_before else "",
        ),
        None
        if margin is None
        else Tile(
            "Mean reward margin",
            figure(margin, 2, signed=True),
            "nats per token" if facts.per_token else "nats",
            before=as_before(figure(number(facts.before.get("margin")), 2)),
            note=f"{INTERVAL} {figure_range(interval)}" if interval else "",
        ),
    ]


def _share_tile(label: str, now: Share | None, was: str) -> Tile | None:
    # With an interval it stands on a scale, in larger type.
    return None if now is None or now.interval is not None else Tile(label, percent(now.value), before=was)


@dataclass(frozen=True)
class SampleLengths:
    """How long the answers to the sample prompts are, in tokens, and how they end.

    Attributes:
        ended: share that ended by itself, not at the limit.
        degenerate: share that is blank, stuck or looping.
    """

    mean_tokens: float | None
    median_tokens: float | None
    ended: float | None
    degenerate: float | None


def lengths(facts: RunFacts, when: str) -> SampleLengths:
    """Answer lengths "before" or "after": as evaluated, or counted from the samples."""
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


def _length_tiles(facts: RunFacts) -> list[Tile | None]:
    was, now = lengths(facts, "before"), lengths(facts, "after")
    found: list[Tile | None] = []
    if now.median_tokens is not None:
        found.append(Tile("Median answer", tokens(now.median_tokens), "tokens", as_before(tokens(was.median_tokens))))
    if now.ended is not None:
        found.append(Tile("Answers ended by themselves", percent(now.ended), before=as_before(percent(was.ended))))
    return found


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
