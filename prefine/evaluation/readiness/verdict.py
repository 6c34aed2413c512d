"""Go, caution or no-go: measures compared with a recipe's thresholds, each with its meaning for PPO.

A finding is no-go if PPO would certainly optimise something else than what people want, caution if it may. Shares of
few pairs are judged by their intervals. A model whose accuracy may be chance is no-go.
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

# Added to a figure beyond its limit that chance may explain.
_BY_CHANCE = ": within chance of the limit"


class Level(StrEnum):
    """The level of a finding; a verdict has that of its worst finding."""

    GO = "go"
    CAUTION = "caution"
    NO_GO = "no-go"


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        name: of the check.
        level: of the result.
        found: the figures.
        rule: the requirement.
        meaning: what it means, or what to do; empty for go.
    """

    name: str
    level: Level
    found: str
    rule: str
    meaning: str = ""


@dataclass(frozen=True)
class Measured:
    """All measures for a verdict.

    Attributes:
        accuracy: on held-out pairs.
        train_accuracy: on training pairs, if known.
        std: of held-out scores.
        suspects, looked_at: labels that look flipped, and how many were checked.
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
        """Whether it prefers rejected answers, beyond chance."""
        interval = self.accuracy.interval
        return interval is not None and interval.high < 0.5

    @property
    def guessing(self) -> bool:
        """Whether its held-out accuracy may be chance."""
        interval = self.accuracy.interval
        return interval is None or interval.low <= 0.5 <= interval.high


def verdict(findings: Sequence[Finding]) -> Level:
    """The worst level among the findings."""
    order = list(Level)
    return max((finding.level for finding in findings), key=order.index, default=Level.GO)


def findings(measured: Measured, limits: ReadinessSection) -> list[Finding]:
    """All findings in the order of the report."""
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
        meaning = "It is better than chance, but PPO will also follow its many mistakes."
        return Finding("held-out accuracy", Level.CAUTION, found, rule, meaning)
    return Finding("held-out accuracy", Level.GO, found, rule)


def _guessing(measured: Measured) -> str:
    """The remedy for a model at chance; it depends on whether it has learned its training pairs."""
    train = measured.train_accuracy
    if train is not None and train.interval is not None and train.interval.low > 0.5:
        return (
            f"It may be guessing, though it is right in {percent(train.value)} of its training pairs: it does not "
            "generalise. Give more pairs, or more consistent ones."
        )
    return "It may be guessing. Train longer or at a higher learning rate, give more pairs, or start from an SFT model."


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
    # The certain gap: between the nearer ends of the two intervals.
    sure = (train.interval.low if train.interval else 0) - (heldout.interval.high if heldout.interval else 1) > 0
    wide = train.value - heldout.value > limits.max_accuracy_gap
    bad = wide and sure
    yield Finding(
        "training against held-out",
        Level.CAUTION if bad else Level.GO,
        f"{percent(train.value)} against {percent(heldout.value)}{_BY_CHANCE if wide and not bad else ''}",
        f"at most {_points(limits.max_accuracy_gap)} difference",
        "It has memorised training pairs. Use fewer epochs, a smaller learning rate or more data." if bad else "",
    )


def _points(share: float) -> str:
    return f"{figure(100 * share, 0)} points"


def _calibration(measured: Measured, limits: ReadinessSection) -> Iterator[Finding]:
    found = measured.calibration
    if found is None:
        return
    # With few pairs the error is large by chance: some bin must be beyond that.
    beyond = any(b.accuracy.interval and not b.accuracy.interval.contains(b.confidence) for b in found.bins)
    large = found.error > limits.max_calibration_error
    bad = large and beyond
    sure = sum((b.confidence - b.accuracy.value) * (b.accuracy.count or 0) for b in found.bins) > 0
    if sure:
        meaning = "It is overconfident: differences of scores overstate those of human judgements."
    elif measured.guessing:
        meaning = "Its scores are too close together to say much: see the held-out accuracy first."
    else:
        meaning = "It is underconfident: scores are close together, so PPO's KL penalty weighs more."
    yield Finding(
        "calibration error",
        Level.CAUTION if bad else Level.GO,
        f"{figure(found.error)}{_BY_CHANCE if large and not bad else ''}",
        f"at most {figure(limits.max_calibration_error, 2)}",
        meaning if bad else "",
    )


def _shorter(length: LengthBias) -> Iterator[Finding]:
    shorter, longer = length.chosen_shorter, length.chosen_longer
    rule = f"interval not below {percent(0.5)}"
    name = "pairs whose shorter answer was preferred"
    if shorter is None or shorter.interval is None:
        if longer is None:
            return
        meaning = (
            "In every pair people preferred the longer answer, so a preference for length and one for quality look the "
            "same."
        )
        yield Finding(name, Level.CAUTION, "none", "some", meaning)
        return
    found = f"right in {percent(shorter.value)} of {shorter.count}, interval {percent_range(shorter.interval)}"
    if shorter.interval.high < 0.5:
        meaning = (
            "It prefers length to quality: PPO will generate ever longer answers. Balance the lengths in the data."
        )
        yield Finding(name, Level.NO_GO, found, rule, meaning)
    elif longer is not None and longer.interval is not None and shorter.interval.high < longer.interval.low:
        meaning = (
            f"Of pairs whose longer answer was preferred it is right in {percent(longer.value)}: length influences it."
        )
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
        "prefers the longer answer",
        Level.CAUTION if bad else Level.GO,
        f"in {percent(model.value)} of pairs, people in {percent(people.value)}{by_chance}",
        f"no more than {_points(limits.max_length_excess)} above people",
        "It prefers length more than people do: watch the answers' length under PPO, or set a length penalty."
        if bad
        else "",
    )


def _spoilt(spoilt: Spoilt, limits: ReadinessSection) -> Finding:
    share, fatal = spoilt.fooled, spoilt.name in FATAL
    low = share.interval.low if share.interval else 0.0
    level = Level.GO
    meaning = ""
    if fatal and share.value > limits.max_fooled_no_go:
        level, meaning = Level.NO_GO, "Answers without content beat real ones: PPO will exploit that within minutes."
    elif low > limits.max_fooled or (fatal and share.value > limits.max_fooled):
        level = Level.CAUTION
        meaning = (
            "It hardly uses the prompt: fluent answers to anything score well."
            if spoilt.name == SWAPPED
            else "A cheap trick raises the score: PPO will exploit it. Keep the guards on."
        )
    found = f"{percent(share.value)} of {share.count} did not score lower"
    if level is Level.GO and share.value > limits.max_fooled and share.interval:
        found += f", interval {percent_range(share.interval)}{_BY_CHANCE}"
    return Finding(f"corrupted answers: {spoilt.name}", level, found, f"at most {percent(limits.max_fooled)}", meaning)


def _variance(variance: Variance, limits: ReadinessSection) -> Finding:
    level, meaning = Level.GO, ""
    if variance.deviations > limits.max_variance_no_go:
        level, meaning = (
            Level.NO_GO,
            "The same answer gets different scores. If it still does in float32, the model's code is at fault.",
        )
    elif variance.deviations > limits.max_variance:
        level, meaning = (
            Level.CAUTION,
            "Rounding errors are as large as small differences between answers: use float32.",
        )
    return Finding(
        f"score changes with {variance.name}",
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
        meaning = "The model is not good enough to judge labels: improve the held-out accuracy first."
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
            "The model saw these prompts in training: its accuracy here may be too high.",
        )
