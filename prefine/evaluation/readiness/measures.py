"""Measures on judged pairs: accuracy, calibration, length bias, suspected labels. Numbers only, no verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from prefine.evaluation.readiness.pairs import JudgedPair
from prefine.intervals import Interval, Share, correlation

_CALIBRATION_BINS = 5
_MARGIN_PARTS = 4
_FEWEST_FOR_CORRELATION = 10


def accuracy(pairs: Sequence[JudgedPair]) -> Share | None:
    """Share of pairs in which the chosen answer has the higher score; None without pairs."""
    return Share(sum(pair.agrees for pair in pairs) / len(pairs), len(pairs)) if pairs else None


@dataclass(frozen=True)
class PairGroup:
    """Accuracy within one part of the pairs."""

    name: str
    accuracy: Share


def by_group(pairs: Sequence[JudgedPair]) -> list[PairGroup]:
    """Accuracy by subset or category, in the order of first appearance; empty if pairs have none."""
    names = dict.fromkeys(pair.group for pair in pairs)
    if not any(names):
        return []
    return _parts([(name or "(none)", [pair for pair in pairs if pair.group == name]) for name in names])


def by_data_margin(pairs: Sequence[JudgedPair]) -> list[PairGroup]:
    """Accuracy by the data's own margin of the chosen answer; empty without margins."""
    return _quantiles([pair for pair in pairs if pair.data_margin is not None], lambda pair: pair.data_margin or 0.0)


def by_score_margin(pairs: Sequence[JudgedPair]) -> list[PairGroup]:
    """Accuracy by the model's margin: where it is confident it should be correct."""
    return _quantiles(pairs, lambda pair: abs(pair.margin))


def _quantiles(pairs: Sequence[JudgedPair], size: Callable[[JudgedPair], float]) -> list[PairGroup]:
    ordered = sorted(pairs, key=size)
    edges = [place * len(ordered) // _MARGIN_PARTS for place in range(_MARGIN_PARTS + 1)]
    runs = [ordered[start:end] for start, end in pairwise(edges) if end > start]
    return _parts([(f"{size(run[0]):.2f} to {size(run[-1]):.2f}", run) for run in runs])


def _parts(groups: Sequence[tuple[str, list[JudgedPair]]]) -> list[PairGroup]:
    found = ((name, accuracy(pairs)) for name, pairs in groups)
    return [PairGroup(name, share) for name, share in found if share is not None]


@dataclass(frozen=True)
class CalibrationBin:
    """Pairs with similar confidence of the model.

    Attributes:
        low, high: of the confidence σ(|Δr|), in [0.5, 1].
        confidence: mean.
        accuracy: share of them in which the preferred answer has the higher score.
    """

    low: float
    high: float
    confidence: float
    accuracy: Share


@dataclass(frozen=True)
class Calibration:
    """The reliability of the model's confidence (Guo et al. 2017, arXiv 1706.04599, eq. 3).

    Attributes:
        error: expected calibration error, the bins' mean |accuracy - confidence| weighted by pairs.
    """

    error: float
    bins: list[CalibrationBin]


def calibration(pairs: Sequence[JudgedPair]) -> Calibration | None:
    """Reliability of σ(|Δr|) in bins of equal width over [0.5, 1]; None without pairs."""
    if not pairs:
        return None
    width = 0.5 / _CALIBRATION_BINS
    filled: dict[int, list[JudgedPair]] = {}
    for pair in pairs:
        place = min(int((_confidence(pair) - 0.5) / width), _CALIBRATION_BINS - 1)
        filled.setdefault(place, []).append(pair)
    bins = []
    for place, inside in sorted(filled.items()):
        mean = math.fsum(map(_confidence, inside)) / len(inside)
        right = Share(sum(pair.agrees for pair in inside) / len(inside), len(inside))
        bins.append(CalibrationBin(0.5 + place * width, 0.5 + (place + 1) * width, mean, right))
    error = math.fsum(abs(b.accuracy.value - b.confidence) * (b.accuracy.count or 0) for b in bins) / len(pairs)
    return Calibration(error, bins)


def probability(margin: float) -> float:
    """σ(Δr): the model's probability that people prefer the chosen answer."""
    return 1 / (1 + math.exp(-margin)) if margin > -700 else 0.0


def _confidence(pair: JudgedPair) -> float:
    return probability(abs(pair.margin))


@dataclass(frozen=True)
class LengthBias:
    """The relation of length and scores.

    Attributes:
        correlation: Spearman's, of score and tokens over all answers; None with too few.
        pair_correlation: the same for differences within each pair, which do not depend on the prompt.
        people: share of pairs (of unequal lengths) in which people chose the longer answer.
        model: share of pairs with unequal scores in which the model does.
        chosen_longer, chosen_shorter: accuracy where the chosen answer is the longer, or the shorter one.
    """

    correlation: tuple[float, Interval] | None
    pair_correlation: tuple[float, Interval] | None
    people: Share | None
    model: Share | None
    chosen_longer: Share | None
    chosen_shorter: Share | None


def length_bias(pairs: Sequence[JudgedPair]) -> LengthBias:
    """Measure it on pairs (Singhal et al. 2023, arXiv 2310.03716)."""
    sides = [side.score for pair in pairs for side in (pair.chosen, pair.rejected)]
    uneven = [pair for pair in pairs if pair.longer]
    count = len(uneven)
    longer = sum(pair.longer > 0 for pair in uneven)
    preferring = [pair for pair in uneven if pair.margin]
    picked = sum((pair.margin > 0) == (pair.longer > 0) for pair in preferring)
    return LengthBias(
        correlation=_correlation([side.tokens for side in sides], [side.score for side in sides]),
        pair_correlation=_correlation(
            [pair.chosen.score.tokens - pair.rejected.score.tokens for pair in pairs], [pair.margin for pair in pairs]
        ),
        people=Share(longer / count, count) if count else None,
        model=Share(picked / len(preferring), len(preferring)) if preferring else None,
        chosen_longer=accuracy([pair for pair in uneven if pair.longer > 0]),
        chosen_shorter=accuracy([pair for pair in uneven if pair.longer < 0]),
    )


def _correlation(lengths: Sequence[float], scores: Sequence[float]) -> tuple[float, Interval] | None:
    return correlation(lengths, scores) if len(lengths) >= _FEWEST_FOR_CORRELATION else None


def suspects(pairs: Sequence[JudgedPair], below: float) -> list[JudgedPair]:
    """Pairs whose label looks flipped, the most suspicious first.

    The model gives the label a probability under `below`, and its heads, if there are several, agree on the side
    (Wang et al. 2024, arXiv 2401.06080, sec. 2.2: a low mean preference strength over an ensemble marks wrong labels).
    `below` is close to 1/2: if a share e of the labels is wrong, even a perfect model has a confidence of only 1 - e in
    each.
    """
    found = [pair for pair in pairs if probability(pair.margin) < below and pair.margin + pair.disagreement < 0]
    return sorted(found, key=lambda pair: pair.margin)
