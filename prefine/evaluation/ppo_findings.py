"""What a PPO run came to: rewards before and after, how far the policy went for them, and what the guards did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prefine.evaluation.charts import Chart, Key, metric_chart
from prefine.evaluation.headlines import Headline, Tile
from prefine.evaluation.plots import Bars, histogram
from prefine.evaluation.run_facts import RunFacts, count, dictionaries, mapping, number, numbers, text
from prefine.evaluation.statistics import Interval, evenly_chosen, median
from prefine.evaluation.wording import INTERVAL, figure, figure_range, percent, plural

_MOST_ROLLOUTS = 12


def ppo_headline(facts: RunFacts) -> Headline | None:
    """How the median held-out reward changed, and whether by more than chance."""
    before, after = number(facts.before.get("score_median")), number(facts.after.get("score_median"))
    if facts.stage != "ppo" or before is None or after is None:
        return None
    answers = plural(facts.heldout_count, "held-out answer") if facts.heldout_count else "held-out answers"
    verb = "stayed at" if before == after else f"{'rose' if after > before else 'fell'} from {figure(before, 2)} to"
    sentence = f"The median reward of {answers} {verb} {figure(after, 2)}."
    return Headline(sentence, [_change_line(facts), _distance_line(facts), _guard_line(facts)])


def _change_line(facts: RunFacts) -> str:
    change = mapping(mapping(facts.evaluation.get("heldout")).get("median_change"))
    found, ends = number(change.get("value")), mapping(change.get("interval"))
    low, high = number(ends.get("low")), number(ends.get("high"))
    if found is None or low is None or high is None:
        return ""
    interval = Interval(low, high)
    line = f"Change of the median: {figure(found, 2, signed=True)} ({INTERVAL} {figure_range(interval, signed=True)})."
    return line + (" The interval includes 0: this may be chance." if interval.contains(0) else "")


def _distance_line(facts: RunFacts) -> str:
    kl = number(facts.after.get("kl_k3"))
    was, now = number(facts.before.get("degenerate")), number(facts.after.get("degenerate"))
    told = f"It is {figure(kl, 3)} nats a token from where it began." if kl is not None else ""
    if was is None or now is None:
        return told
    return f"{told} Blank, stuck or looping answers: {percent(was)} before, {percent(now)} after."


def _guard_line(facts: RunFacts) -> str:
    acted = [event for event in facts.guard_events if event.get("action") != "warn"]
    return f"Guards stepped in {plural(len(acted), 'time')}: see below." if acted else ""


def ppo_tiles(facts: RunFacts) -> list[Tile]:
    """The key figures that only PPO has."""
    wanted = (
        ("Median held-out reward", "score_median", lambda value: figure(value, 2)),
        ("KL a token", "kl_k3", lambda value: figure(value, 3)),
        ("Entropy", "entropy", lambda value: figure(value, 2)),
        ("Degenerate answers", "degenerate", percent),
        ("Judge’s score", "judge", lambda value: figure(value, 2)),
        ("Held-out pairs ordered as people did", "pair_accuracy", percent),
    )
    units = {"kl_k3": "nats", "entropy": "nats"}
    found = []
    for label, key, told in wanted:
        now, was = number(facts.after.get(key)), number(facts.before.get(key))
        if now is not None:
            before = f"before {told(was)}" if was is not None else ""
            found.append(Tile(label, told(now), units.get(key, ""), before))
    return found


def ppo_charts(facts: RunFacts) -> list[Chart]:
    """How reward and distance went over the updates, and held-out rewards before and after on one axis."""
    drawn = [
        metric_chart(facts, "score", "Reward", "weighted scores of the sources, before penalties"),
        _histogram(facts),
        metric_chart(facts, "kl_k3", "KL", "to the reference, k3, nats a token", decimals=3),
        metric_chart(facts, "entropy", "Entropy", "nats a token"),
        metric_chart(facts, "response_tokens", "Answer length", "mean, tokens", decimals=0),
        metric_chart(facts, "degenerate", "Degenerate answers", "share that is blank, stuck or loops"),
        metric_chart(facts, "explained_variance", "Critic", "explained variance of the returns; 1 is perfect"),
        metric_chart(facts, "judge", "Judge", "mean score of the second reward model, never optimised"),
    ]
    return [chart for chart in drawn if chart is not None]


def _histogram(facts: RunFacts) -> Chart | None:
    responses = dictionaries(mapping(facts.evaluation.get("heldout")).get("responses"))
    before, after = numbers(responses, "before_score"), numbers(responses, "after_score")
    if not before or not after:
        return None
    bars = [Bars(before, "before", median(before), filled=True), Bars(after, "after", median(after), filled=False)]
    return Chart(
        f"Held-out rewards: median {figure(median(before), 2)} → {figure(median(after), 2)}",
        f"{plural(len(after), 'answer')} to the same prompts with the same random numbers",
        histogram("rewards", "Held-out rewards before and after", bars, xlabel="reward", ylabel="answers"),
        [Key("before", "block", "before"), Key("after", "line", "after")],
        "Dashed lines: medians.",
    )


@dataclass(frozen=True)
class SourceRow:
    """A reward source by itself: its mean score as it gives it, and its mean part of the weighted sum."""

    name: str
    weight: str
    before: str
    after: str
    share_before: str
    share_after: str


def sources(facts: RunFacts) -> list[SourceRow]:
    """Each reward source on held-out answers, else on those of the first and last update."""
    measured = "score" in facts.before and "score" in facts.after
    updates = facts.train or [{}]
    ends = (facts.before, facts.after) if measured else (updates[0], updates[-1])
    reward = mapping(mapping(facts.manifest.get("recipe")).get("reward"))
    weights = {
        text(each.get("name")): number(each.get("weight")) for each in (reward, *dictionaries(reward.get("more")))
    }
    names = [key.removeprefix("score/") for key in ends[1] if key.startswith("score/")]
    return [
        SourceRow(
            name,
            figure(weights.get(name), 2),
            *(figure(number(end.get(f"{what}/{name}")), 2) for what in ("score", "share") for end in ends),
        )
        for name in names
    ]


@dataclass(frozen=True)
class GuardEvent:
    """Something that a guard did.

    Attributes:
        did: warned, stopped, or rolled back, and to where.
        changed: what goes on otherwise since.
        given_up: the guard's figure over the steps that were given up.
    """

    step: str
    did: str
    words: str
    changed: str
    given_up: str


def guard_events(facts: RunFacts) -> list[GuardEvent]:
    """What the guards did, in order and in words."""
    return [_event(event) for event in facts.guard_events]


def _event(event: Mapping[str, Any]) -> GuardEvent:
    back, action = count(event.get("back_to_step")), text(event.get("action"))
    did = {
        "warn": "warned",
        "stop": f"ended the run on the weights of step {back}",
        "roll_back": f"took the run back to step {back}",
    }.get(action or "", "acted")
    changed = ", ".join(
        f"{name.replace('_', ' ')} now {figure(number(value))}" for name, value in mapping(event.get("changed")).items()
    )
    rows = dictionaries(event.get("given_up"))
    names = [name for name in (rows[-1] if rows else {}) if name != "step" and name in (text(event.get("words")) or "")]
    path = [" → ".join(figure(number(row.get(name))) for row in rows) for name in names[:1]]
    step = count(event.get("at_step"))
    return GuardEvent(
        "" if step is None else str(step), did, text(event.get("words")) or "", changed, path[0] if path else ""
    )


@dataclass(frozen=True)
class Rollout:
    """An answer that was written while the run learned."""

    step: str
    asked: str
    response: str
    score: str
    tokens: str
    scores: str


def rollouts(facts: RunFacts) -> list[Rollout]:
    """Some of the answers kept in rollouts.jsonl, the first and the last among them."""
    rows = facts.rollouts
    return [
        Rollout(
            str(count(row.get("step"))),
            next((text(turn.get("content")) or "" for turn in reversed(dictionaries(row.get("prompt")))), ""),
            text(row.get("response")) or "",
            figure(number(row.get("score")), 2),
            str(count(row.get("tokens"))),
            ", ".join(f"{name} {figure(number(value), 2)}" for name, value in mapping(row.get("scores")).items()),
        )
        for row in (rows[place] for place in evenly_chosen(len(rows), _MOST_ROLLOUTS))
    ]
