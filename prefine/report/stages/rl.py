"""The report of a PPO run: rewards before and after, and the policy's distance from its reference."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from prefine.degeneration import is_blank
from prefine.formatting import INTERVAL, figure, figure_range, percent, plural
from prefine.intervals import Mean, evenly_chosen, median
from prefine.report.answers import answer_cautions
from prefine.report.charts import Chart, Key, drawn, metric_chart
from prefine.report.facts import RunFacts, count, dictionaries, mapping, number, numbers, recorded_change, text
from prefine.report.parts import Caution, Headline, Tile, change_line, change_sentence
from prefine.report.plots import Bars, histogram
from prefine.report.stages.stage_report import StageReport

_MOST_ROLLOUTS = 12
_FEWEST_PROMPTS = 20
# The last quarter of the updates, but at least three: earlier ones are the critic's own training.
_FEWEST_UPDATES = 3


class RlReport(StageReport):
    """PPO, RLOO and GRPO."""

    title = "Proximal policy optimisation"

    def headline(self, facts: RunFacts) -> Headline | None:
        """The change of the mean held-out reward, paired by prompt; the median is in the second line."""
        return _headline(facts) or super().headline(facts)

    def tiles(self, facts: RunFacts) -> list[Tile]:
        """Rewards, distance to the reference and held-out answers, which say more than the few samples."""
        return _tiles(facts)

    def charts(self, facts: RunFacts) -> list[Chart]:
        """How reward and distance changed over the updates, and held-out rewards before and after on one axis."""
        return _charts(facts)

    def sections(self, facts: RunFacts) -> dict[str, Any]:
        """What was rewarded, and answers that the run learned from."""
        return {"sources": sources(facts), "rollouts": rollouts(facts)}

    def cautions(self, facts: RunFacts) -> Iterator[Caution]:
        """Few held-out prompts, a critic that explains nothing, and answers that became worse."""
        yield from _cautions(facts)
        yield from answer_cautions(facts, heldout=bool(facts.responses))


def _headline(facts: RunFacts) -> Headline | None:
    before, after = number(facts.before.get("score")), number(facts.after.get("score"))
    if before is None or after is None:
        return None
    mean, median_ = _changes(facts)
    interval = None if mean is None else mean.interval
    sentence = change_sentence(f"the mean reward of {_answers(facts)}", before, after, interval, _reward)
    lines = [
        "" if mean is None else change_line("the mean", mean, "paired by prompt"),
        "" if median_ is None else _median_line(facts, median_),
        "" if mean else "The run recorded no paired change, so whether this is more than chance is not known.",
    ]
    return Headline(f"{sentence}.", [*lines, _distance_line(facts), _guard_line(facts)])


def _reward(value: float) -> str:
    return figure(value, 2)


def _answers(facts: RunFacts) -> str:
    """180 answers to 45 held-out prompts, as far as known."""
    prompts, samples = facts.heldout_count, facts.heldout_samples
    if not prompts:
        return "held-out answers"
    if samples is None:
        return plural(prompts, "held-out answer")
    return f"{plural(prompts * samples, 'answer')} to {plural(prompts, 'held-out prompt')}"


def _changes(facts: RunFacts) -> tuple[Mean | None, Mean | None]:
    """Changes of the mean and of the median reward."""
    heldout = mapping(facts.evaluation.get("heldout"))
    return recorded_change(heldout.get("mean_change")), recorded_change(heldout.get("median_change"))


def _median_line(facts: RunFacts, change: Mean) -> str:
    before, after = number(facts.before.get("score_median")), number(facts.after.get("score_median"))
    ends = f" ({_reward(before)} before, {_reward(after)} after)" if before is not None and after is not None else ""
    return change_line(f"the median answer{ends}", change, "over prompts")


def _distance_line(facts: RunFacts) -> str:
    kl = number(facts.after.get("kl_k3"))
    was, now = number(facts.before.get("degenerate")), number(facts.after.get("degenerate"))
    told = f"The KL to the reference is {figure(kl, 3)} nats per token." if kl is not None else ""
    if was is None or now is None:
        return told
    return f"{told} Blank, stuck or looping answers: {percent(was)} before, {percent(now)} after."


def _guard_line(facts: RunFacts) -> str:
    acted = [event for event in facts.guard_events if event.get("action") != "warn"]
    return f"Guards stepped in {plural(len(acted), 'time')}: see below." if acted else ""


def _tiles(facts: RunFacts) -> list[Tile]:
    wanted = (
        ("Mean held-out reward", "score", _reward),
        ("Median held-out reward", "score_median", _reward),
        ("KL per token", "kl_k3", lambda value: figure(value, 3)),
        ("Entropy", "entropy", lambda value: figure(value, 2)),
        ("Mean answer", "response_tokens", lambda value: figure(value, 0)),
        ("Answers ended by themselves", "ended", percent),
        ("Degenerate answers", "degenerate", percent),
        ("Judge’s score", "judge", _reward),
        ("Held-out pairs ranked as people did", "pair_accuracy", percent),
    )
    units = {"kl_k3": "nats", "entropy": "nats", "response_tokens": "tokens"}
    notes = dict(zip(("score", "score_median"), map(_change_note, _changes(facts)), strict=True))
    found = []
    for label, key, told in wanted:
        now, was = number(facts.after.get(key)), number(facts.before.get(key))
        if now is not None:
            before = f"before {told(was)}" if was is not None else ""
            found.append(Tile(label, told(now), units.get(key, ""), before, notes.get(key, "")))
    return found


def _change_note(change: Mean | None) -> str:
    if change is None or change.interval is None:
        return ""
    size = figure(change.value, 2, signed=True)
    return f"change {size}, {INTERVAL} {figure_range(change.interval, signed=True)}"


def _charts(facts: RunFacts) -> list[Chart]:
    return drawn(
        metric_chart(facts, "score", "Reward", "weighted scores of the sources, before penalties"),
        _histogram(facts),
        metric_chart(facts, "kl_k3", "KL", "to the reference, k3, nats per token", decimals=3),
        metric_chart(facts, "entropy", "Entropy", "nats per token"),
        metric_chart(facts, "response_tokens", "Answer length", "mean, tokens", decimals=0),
        metric_chart(facts, "degenerate", "Degenerate answers", "share that is blank, stuck or loops"),
        metric_chart(facts, "explained_variance", "Critic", "explained variance of the returns; 1 is perfect"),
        metric_chart(facts, "judge", "Judge", "mean score of the second reward model, never optimised"),
    )


def _histogram(facts: RunFacts) -> Chart | None:
    before, after = numbers(facts.responses, "before_score"), numbers(facts.responses, "after_score")
    if not before or not after:
        return None
    bars = [Bars(before, "before", median(before), filled=True), Bars(after, "after", median(after), filled=False)]
    return Chart(
        f"Held-out rewards: median {figure(median(before), 2)} → {figure(median(after), 2)}",
        f"{_answers(facts)}, before and after with the same random numbers",
        histogram("rewards", "Held-out rewards before and after", bars, xlabel="reward", ylabel="answers"),
        [Key("before", "block", "before"), Key("after", "line", "after")],
        "Dashed lines: medians.",
    )


@dataclass(frozen=True)
class SourceRow:
    """A reward source: its mean raw score, and its mean share of the weighted sum."""

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
class Rollout:
    """An answer that was generated in training."""

    step: str
    asked: str
    response: str
    score: str
    tokens: str
    scores: str


def _visible(response: str) -> str:
    return "" if is_blank(response) else response


def rollouts(facts: RunFacts) -> list[Rollout]:
    """Some of the answers in rollouts.jsonl, with the first and the last."""
    rows = facts.rollouts
    return [
        Rollout(
            str(count(row.get("step"))),
            next((text(turn.get("content")) or "" for turn in reversed(dictionaries(row.get("prompt")))), ""),
            _visible(text(row.get("response")) or ""),
            figure(number(row.get("score")), 2),
            str(count(row.get("tokens"))),
            ", ".join(f"{name} {figure(number(value), 2)}" for name, value in mapping(row.get("scores")).items()),
        )
        for row in (rows[place] for place in evenly_chosen(len(rows), _MOST_ROLLOUTS))
    ]


def _cautions(facts: RunFacts) -> Iterator[Caution]:
    """Few held-out prompts; a critic whose explained variance was not above 0 over the last updates."""
    prompts = facts.heldout_count if facts.responses else None
    if prompts is not None and prompts < _FEWEST_PROMPTS:
        yield Caution(
            f"Only {plural(prompts, 'held-out prompt')}: small changes of the reward cannot be seen.",
            "Hold out more prompts (data.heldout, data.heldout_fraction) and raise rollout.heldout_prompts. "
            "More answers to each (rollout.heldout_samples) help less.",
        )
    explained = numbers(facts.train, "explained_variance")
    has_critic = mapping(facts.manifest.get("recipe")).get("advantage", "gae") == "gae"
    if not has_critic or len(explained) < _FEWEST_UPDATES:
        return
    last = explained[-max(_FEWEST_UPDATES, len(explained) // 4) :]
    average = statistics.fmean(last)
    if average <= 0:
        yield Caution(
            f"The critic explains nothing: over the last {len(last)} updates its explained variance was "
            f"{figure(average, 2)} on average.",
            "Advantages are then little better than plain returns. Train longer, raise ppo.critic_learning_rate or "
            "ppo.value_warmup_updates, or use advantage rloo, which needs no critic.",
        )
