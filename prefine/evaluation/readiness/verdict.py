"""Go, caution or no-go: the measures held against a recipe's thresholds, each with what it means for PPO.

A finding is no-go where PPO is sure to optimise something else than what people want, caution where it may. Shares of
few pairs are judged by their intervals. A model whose accuracy a coin could have is no-go: nothing speaks for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from prefine.evaluation.readiness.measures import Calibration, LengthBias
from prefine.evaluation.readiness.probes import FATAL, SWAPPED, Spoilt, Variance
from prefine.formatting import figure, percent, percent_range, plural
from prefine.intervals import Share
from prefine.recipe.reward import ReadinessSection

# Said with a figure that is beyond its limit and yet no reason against the model.
_BY_CHANCE = ": within chance of what is asked"


class Level(StrEnum):
    """How bad a finding is; a verdict is its worst finding's."""

    GO = "go"
    CAUTION = "caution"
    NO_GO = "no-go"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what.
        level: how it came out.
        found: in figures.
        rule: what is asked.
        meaning: what it means, or what to do; empty where all is well.
    """

    name: str
    level: Level
    found: str
    rule: str
    meaning: str = ""


@dataclass(frozen=True)
class Measured:
    """All that a verdict rests on.

    Attributes:
        accuracy: on held-out pairs.
        train_accuracy: on pairs learned from, where they are known.
        std: of held-out scores.
        suspects, looked_at: labels that look flipped, of so many.
        shared_prompts: pairs whose prompt was trained on.
    """

    accuracy: Share
    train_accuracy: Share | None
    calibration: Calibration | None
    length: LengthBias
    variances: Sequence[Variance]
    spoilt: Sequence[Spoilt]
    suspects: int
    looked_at: int
    shared_prompts: int
    std: float

    @property
    def swapped(self) -> bool:
        """Whether it prefers what people rejected, beyond chance."""
        interval = self.accuracy.interval
        return interval is not None and interval.high < 0.5

    @property
    def guessing(self) -> bool:
        """Whether a coin could have its held-out accuracy."""
        interval = self.accuracy.interval
        return interval is None or interval.low <= 0.5 <= interval.high


def verdict(findings: Sequence[Finding]) -> Level:
    """The worst level among the findings."""
    order = list(Level)
    return max((finding.level for finding in findings), key=order.index, default=Level.GO)


def findings(measured: Measured, limits: ReadinessSection) -> list[Finding]:
    """Everything that was looked at, as the report lists it."""
    return [
        _accuracy(measured, limits),
        _enough(measured.accuracy, limits),
        *_gap(measured, limits),
        *_calibration(measured, limits),
        *_shorter(measured.length),
        *_excess(measured.length, limits),
        *(_spoilt(each, limits) for each in measured.spoilt),
        *(_variance(each, limits) for each in measured.variances),
        *_suspects(measured, limits),
        *_shared(measured),
    ]


def _accuracy(measured: Measured, limits: ReadinessSection) -> Finding:
    share, interval = measured.accuracy, measured.accuracy.interval
    found = f"{percent(share.value)} of {plural(share.count or 0, 'pair')}"
    found += f", interval {percent_range(interval)}" if interval else ""
    rule = f"at least {percent(limits.min_accuracy)}, and an interval above {percent(0.5)}"
    if measured.swapped:
        meaning = (
            "It prefers what people rejected. Are the columns chosen and rejected swapped, in the training data or in "
            "the held-out data?"
        )
        return Finding("held-out accuracy", Level.NO_GO, found, rule, meaning)
    if measured.guessing:
        return Finding("held-out accuracy", Level.NO_GO, found, rule, _guessing(measured))
    if share.value < limits.min_accuracy:
        meaning = "It is right more often than a coin, but PPO will also follow its many mistakes."
        return Finding("held-out accuracy", Level.CAUTION, found, rule, meaning)
    return Finding("held-out accuracy", Level.GO, found, rule)


def _guessing(measured: Measured) -> str:
    """What to do about a model that chance explains; it depends on whether it has learned its training pairs."""
    train = measured.train_accuracy
    if train is not None and train.interval is not None and train.interval.low > 0.5:
        return (
            f"It may be guessing, though it is right in {percent(train.value)} of the pairs it learned from: what it "
            "learned does not carry over. Give more pairs, or more consistent ones."
        )
    return "It may be guessing. Train longer or at a higher rate, give more pairs, or start from an SFT model."


def _enough(share: Share, limits: ReadinessSection) -> Finding:
    count = share.count or 0
    few = count < limits.min_pairs
    meaning = "All figures here have wide intervals: hold out more pairs." if few else ""
    rule = f"at least {limits.min_pairs}"
    return Finding("held-out pairs", Level.CAUTION if few else Level.GO, plural(count, "pair"), rule, meaning)


def _gap(measured: Measured, limits: ReadinessSection) -> Iterator[Finding]:
    train, heldout = measured.train_accuracy, measured.accuracy
    if train is None:
        return
    # The gap for sure: between the nearer ends of the two intervals.
    sure = (train.interval.low if train.interval else 0) - (heldout.interval.high if heldout.interval else 1) > 0
    wide = train.value - heldout.value > limits.max_accuracy_gap
    bad = wide and sure
    yield Finding(
        "train against held-out",
        Level.CAUTION if bad else Level.GO,
        f"{percent(train.value)} against {percent(heldout.value)}{_BY_CHANCE if wide and not bad else ''}",
        f"no more than {_points(limits.max_accuracy_gap)} apart",
        "It knows the training pairs by heart. Fewer epochs, a smaller rate or more data." if bad else "",
    )


def _points(share: float) -> str:
    return f"{figure(100 * share, 0)} points"


def _calibration(measured: Measured, limits: ReadinessSection) -> Iterator[Finding]:
    found = measured.calibration
    if found is None:
        return
    # Few pairs have a large error by chance alone: in some bin it must lie beyond that.
    beyond = any(b.accuracy.interval and not b.accuracy.interval.contains(b.confidence) for b in found.bins)
    large = found.error > limits.max_calibration_error
    bad = large and beyond
    sure = sum((b.confidence - b.accuracy.value) * (b.accuracy.count or 0) for b in found.bins) > 0
    if sure:
        meaning = "It is surer than it is right: differences of scores overstate what people would feel."
    elif measured.guessing:
        meaning = "Its scores lie so close together that they say little: see the held-out accuracy first."
    else:
        meaning = "It is right more often than it is sure; scores lie close together, and PPO's KL penalty weighs more."
    yield Finding(
        "calibration error",
        Level.CAUTION if bad else Level.GO,
        f"{figure(found.error)}{_BY_CHANCE if large and not bad else ''}",
        f"at most {figure(limits.max_calibration_error, 2)}",
        meaning if bad else "",
    )


def _shorter(length: LengthBias) -> Iterator[Finding]:
    shorter, longer = length.chosen_shorter, length.chosen_longer
    rule = f"an interval that is not below {percent(0.5)}"
    name = "pairs whose shorter answer was preferred"
    if shorter is None or shorter.interval is None:
        if longer is None:
            return
        meaning = "In every pair people preferred the longer answer: whether it likes length or quality cannot be told."
        yield Finding(name, Level.CAUTION, "none", "some", meaning)
        return
    found = f"right in {percent(shorter.value)} of {shorter.count}, interval {percent_range(shorter.interval)}"
    if shorter.interval.high < 0.5:
        meaning = "It prefers length to quality: PPO will write ever longer answers. Balance the lengths in the data."
        yield Finding(name, Level.NO_GO, found, rule, meaning)
    elif longer is not None and longer.interval is not None and shorter.interval.high < longer.interval.low:
        meaning = f"Where the longer one was preferred it is right in {percent(longer.value)}: length sways it."
        yield Finding(name, Level.CAUTION, found, rule, meaning)
    else:
        yield Finding(name, Level.GO, found, rule)


def _excess(length: LengthBias, limits: ReadinessSection) -> Iterator[Finding]:
    people, model = length.people, length.model
    if people is None or model is None:
        return
    apart = bool(people.interval and model.interval and not people.interval.overlaps(model.interval))
    more = model.value - people.value > limits.max_length_excess
    bad = more and apart
    by_chance = _BY_CHANCE if more and not bad else ""
    yield Finding(
        "picks the longer answer",
        Level.CAUTION if bad else Level.GO,
        f"in {percent(model.value)} of pairs, people in {percent(people.value)}{by_chance}",
        f"no more than {_points(limits.max_length_excess)} above people",
        "It likes length more than people do: watch the answers' length under PPO, or set a length penalty."
        if bad
        else "",
    )


def _spoilt(spoilt: Spoilt, limits: ReadinessSection) -> Finding:
    share, fatal = spoilt.fooled, spoilt.name in FATAL
    low = share.interval.low if share.interval else 0.0
    level = Level.GO
    meaning = ""
    if fatal and share.value > limits.max_fooled_no_go:
        level, meaning = Level.NO_GO, "An answer that says nothing beats real ones: PPO will find that within minutes."
    elif low > limits.max_fooled or (fatal and share.value > limits.max_fooled):
        level = Level.CAUTION
        meaning = (
            "It hardly reads the prompt: fluent answers to anything will score well."
            if spoilt.name == SWAPPED
            else "A trick that costs nothing raises the score: PPO will use it. Keep its guards on."
        )
    found = f"{percent(share.value)} of {share.count} did not score lower"
    if level is Level.GO and share.value > limits.max_fooled and share.interval:
        found += f", interval {percent_range(share.interval)}{_BY_CHANCE}"
    return Finding(f"spoilt answers: {spoilt.name}", level, found, f"at most {percent(limits.max_fooled)}", meaning)


def _variance(variance: Variance, limits: ReadinessSection) -> Finding:
    level, meaning = Level.GO, ""
    if variance.deviations > limits.max_variance_no_go:
        level, meaning = (
            Level.NO_GO,
            "One answer has several scores. If it still does in float32, the model's code is at fault.",
        )
    elif variance.deviations > limits.max_variance:
        level, meaning = Level.CAUTION, "Rounding weighs as much as small differences of answers: use float32."
    return Finding(
        f"score moves with {variance.name}",
        level,
        f"{figure(variance.deviations)} standard deviations",
        f"at most {figure(limits.max_variance, 2)}",
        meaning,
    )


def _suspects(measured: Measured, limits: ReadinessSection) -> Iterator[Finding]:
    share = Share(measured.suspects / measured.looked_at, measured.looked_at) if measured.looked_at else None
    if share is None:
        return
    bad = share.value > limits.max_suspects
    meaning = "Read them in the report; correct or drop the wrong ones, or set reward.label_smoothing to their share."
    if measured.swapped or measured.guessing:
        meaning = "The model is not good enough to judge labels: mend the held-out accuracy first."
    yield Finding(
        "labels that look flipped",
        Level.CAUTION if bad else Level.GO,
        f"{measured.suspects} of {measured.looked_at} ({percent(share.value)})",
        f"at most {percent(limits.max_suspects)}",
        meaning if bad else "",
    )


def _shared(measured: Measured) -> Iterator[Finding]:
    if measured.shared_prompts:
        yield Finding(
            "prompts trained on",
            Level.CAUTION,
            plural(measured.shared_prompts, "pair"),
            "none",
            "The model has seen these prompts in training: its accuracy here may be too high.",
        )
