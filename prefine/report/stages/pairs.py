"""Figures of held-out pairs: shares ranked correctly and moved, and the influence of length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prefine.formatting import plural
from prefine.intervals import Interval, Mean, Share, mean, mean_change
from prefine.report.facts import RunFacts, by_prompt, mapping, number, numbers

WIDE_INTERVAL = 0.2
"""An interval of a share that is wider than this is called wide on the page."""


@dataclass(frozen=True)
class Shares:
    """Shares of held-out pairs by which a preference run is judged.

    Attributes:
        ranked_before, ranked_after: pairs whose chosen answer the model's own log-probabilities rank first.
        moved: pairs whose chosen answer gained log-probability on the rejected one in training: the implicit reward
            accuracy. Before training all pairs are ties, so it has no "before".
    """

    ranked_before: Share | None
    ranked_after: Share | None
    moved: Share | None


def shares(facts: RunFacts, *, has_reference: bool) -> Shares:
    """The shares that a run recorded.

    Args:
        has_reference: whether rewards are measured against the model as it was, so that all are 0 before training.
            Without one the implicit reward is the model's own ranking.
    """
    ranked, moved = "policy_accuracy", _share(facts, facts.after, "accuracy")
    if not has_reference:
        ranked, moved = "policy_accuracy" if "policy_accuracy" in facts.after else "accuracy", None
    return Shares(_share(facts, facts.before, ranked), _share(facts, facts.after, ranked), moved)


def _share(facts: RunFacts, figures: Mapping[str, Any], key: str) -> Share | None:
    value = number(figures.get(key))
    return Share(value, facts.heldout_count) if value is not None and 0 <= value <= 1 else None


def ranked_change(facts: RunFacts, found: Shares) -> Mean | None:
    """The change of the share of correctly ranked pairs, paired by pair.

    Without a recorded ranking of each pair, the interval comes from those of the two shares.
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


def few_pairs(facts: RunFacts, found: Shares) -> str:
    """A warning that there are few pairs; empty if no interval is wide."""
    known = [share for share in (found.moved, found.ranked_after) if share is not None and share.interval is not None]
    if not any(share.interval.width > WIDE_INTERVAL for share in known if share.interval):
        return ""
    intervals = "the interval is wide" if len(known) == 1 else "the intervals are wide"
    return f"{plural(known[0].count or 0, f'held-out {record(facts)}')}: {intervals}."


def record(facts: RunFacts) -> str:
    """What one held-out record is."""
    return "vote" if facts.judged_by_votes else "pair"


def per_token(facts: RunFacts) -> bool:
    """Whether the objective compares log-probabilities per token, not summed over an answer."""
    recipe = mapping(facts.manifest.get("recipe"))
    section = mapping(recipe.get("dpo"))
    loss = section.get("loss")
    names = {loss} if isinstance(loss, str) else set(mapping(loss))
    of_means = bool(names) and names <= {"ipo", "simpo", "sft"}
    return "orpo" in recipe or of_means or section.get("length_normalized") is True


def nats(facts: RunFacts) -> str:
    """The unit of the objective's log-probabilities."""
    return "nats per token" if per_token(facts) else "nats"


def chosen_falls(facts: RunFacts) -> bool:
    """Whether held-out chosen answers lost log-probability: DPO's likelihood displacement (arXiv 2402.13228).

    Where the shift of each pair is known, only if chance does not explain the mean shift.
    """
    before, after = number(facts.before.get("logp_chosen")), number(facts.after.get("logp_chosen"))
    if before is None or after is None:
        return False
    shift = mean(numbers(facts.pairs, "chosen_shift"))
    return after < before and (shift is None or shift.interval is None or shift.interval.high < 0)


@dataclass(frozen=True)
class LengthSplit:
    """Held-out pairs by which answer is longer, and the share of each moved the right way (arXiv 2310.03716)."""

    chosen_longer: Share
    chosen_shorter: Share


def length_split(facts: RunFacts) -> LengthSplit | None:
    """None if lengths are unknown, or all pairs are on one side."""
    sides: dict[bool, list[bool]] = {True: [], False: []}
    for pair in facts.pairs:
        margin = number(pair.get("after_margin"))
        chosen, rejected = number(pair.get("chosen_tokens")), number(pair.get("rejected_tokens"))
        if margin is not None and chosen is not None and rejected is not None and chosen != rejected:
            sides[chosen > rejected].append(margin > 0)
    if not (sides[True] and sides[False]):
        return None
    longer, shorter = (Share(sum(sides[side]) / len(sides[side]), len(sides[side])) for side in (True, False))
    return LengthSplit(longer, shorter)
