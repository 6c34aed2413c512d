"""Is a change between two models real? Paired tests, intervals and the number of prompts that would settle it.

All values are paired by prompt: the same prompt answered by both models. scipy, which does the arithmetic, is imported
on use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from prefine.intervals import CONFIDENCE, Interval, Mean, mean, mean_change, median, ratio_change

ALPHA = 1 - CONFIDENCE
"""The chance of an error that a finding may have."""

# Sign flips that are enumerated: 2 ** 13 = 8,192; beyond, as many random ones.
_ENUMERATED = 13
_RANDOM_FLIPS = 9_999
_FLIPS_AT_ONCE = 2_000_000  # values in memory: 16 MB
_FEWEST_FOR_A_MEDIAN = 6
_NO_SKEWNESS = 1e-6
_POWER = 0.8
_Z = NormalDist().inv_cdf(1 - ALPHA / 2)
_MOST_PROMPTS = 1_000_000


@dataclass(frozen=True, slots=True)
class Change:
    """The change of a figure, paired by prompt.

    Attributes:
        value: candidate minus baseline.
        interval: of 95 %; None if there are too few prompts for one.
        p: two-sided, of the test that the two models are equal.
        count: prompts.
        deviation: standard deviation of one prompt's change.
    """

    value: float
    interval: Interval | None
    p: float
    count: int
    deviation: float

    @property
    def more_prompts(self) -> int | None:
        """How many more prompts would show the change (see `more_prompts`); None if it is shown already."""
        return None if is_shown(self.interval, self.p) else more_prompts(self.value, self.deviation, self.count)


def is_shown(interval: Interval | None, p: float | None) -> bool:
    """Whether the test and the interval both show a change."""
    return interval is not None and not interval.contains(0) and p is not None and p < ALPHA


def change_of_mean(candidate: Sequence[float], baseline: Sequence[float]) -> Change | None:
    """The change of the mean of values, one a prompt; None without prompts.

    The interval is `interval_of_mean` of the changes; if all prompts changed by the same amount, it is that amount,
    given enough prompts for a sign test. The test is `sign_flip_test`.
    """
    found: Mean | None = mean_change([[value] for value in baseline], [[value] for value in candidate])
    if found is None:
        return None
    changes = [now - was for now, was in zip(candidate, baseline, strict=True)]
    interval = found.interval
    if interval is not None and interval.width > 0:
        interval = _with_skewness(interval, changes)
    return Change(found.value, interval, sign_flip_test(changes), found.count, _deviation(changes))


def median_of_changes(candidate: Sequence[float], baseline: Sequence[float]) -> Change | None:
    """The median of the changes of values, one a prompt: how far the typical prompt moved; None without prompts.

    The interval is `interval_of_median`, the test the sign test. The deviation is the one that the interval's width
    stands for.
    """
    changes = [now - was for now, was in zip(candidate, baseline, strict=True)]
    centre = median(changes)
    if centre is None:
        return None
    interval = interval_of_median(changes)
    deviation = interval.width / 2 / _Z * math.sqrt(len(changes)) if interval else 0.0
    p = sign_test(sum(change > 0 for change in changes), sum(change < 0 for change in changes))
    return Change(centre, interval, p, len(changes), deviation)


def change_of_ratio(candidate: Sequence[float], baseline: Sequence[float], sizes: Sequence[float]) -> Change | None:
    """The change of a ratio of sums, such as a loss per token over answers of unequal lengths; None without sizes.

    The interval is that of `ratio_change`, the test `sign_flip_test`.

    Args:
        candidate, baseline: a sum for each prompt. sizes: of the prompts' answers, the same for both models.
    """
    found = ratio_change(baseline, candidate, sizes)
    if found is None:
        return None
    changes = [now - was for now, was in zip(candidate, baseline, strict=True)]
    average = math.fsum(sizes) / len(sizes)
    spread = [(change - found.value * size) / average for change, size in zip(changes, sizes, strict=True)]
    return Change(found.value, found.interval, sign_flip_test(changes), found.count, _deviation(spread))


def interval_of_mean(values: Sequence[float]) -> Interval | None:
    """The interval of a mean: from the lower of the lower ends to the higher of the higher ends of two.

    One is Student's t, the other the same after Hall's transformation (J. R. Statist. Soc. B 54, 1992, 221-228), which
    takes the skewness of the values out of the statistic. For skewed values neither a t interval nor a BCa bootstrap
    holds its 95 % at 30 prompts; docs/evaluation.md has the figures (`python -m benchmarks --only coverage`).

    Returns: None for fewer than two values, or for values that do not differ.
    """
    found = mean(values)
    return None if found is None or found.interval is None else _with_skewness(found.interval, values)


def change_of_share(up: int, down: int, count: int) -> Change | None:
    """The change of a share of prompts; None without prompts.

    The interval is Tango's score interval for paired proportions (Statistics in Medicine 17, 1998), which is Wilson's
    if all prompts differ. The test is exact, McNemar's: given that a prompt differs, either direction is as likely.

    Args:
        up: prompts that only the candidate passed (or won).
        down: prompts that only the baseline passed (or won).
        count: all prompts.
    """
    if not count:
        return None
    value = (up - down) / count
    variance = (up + down) / count - value**2
    deviation = math.sqrt(variance * count / (count - 1)) if count > 1 else 0.0
    return Change(value, _tango(up, down, count), sign_test(up, down), count, deviation)


def sign_test(up: int, down: int) -> float:
    """p, two-sided and exact, that either direction is as likely; 1 if nothing differs."""
    if not up + down:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(up, up + down).pvalue)


def sign_flip_test(changes: Sequence[float]) -> float:
    """p, two-sided, that each change is as likely in either direction (Fisher 1935, Design of Experiments, §21).

    If the two models are equal, exchanging them at a prompt changes nothing but the sign: so the chance of a mean as
    far from 0 as this one is the share of sign patterns that give one. Up to 13 prompts that differ, all patterns are
    counted and p is exact; beyond, 9,999 random ones, always the same, and the observed one.
    """
    import numpy as np

    values = np.array([change for change in changes if change != 0])
    if not len(values):
        return 1.0
    # Flips that give the same sum in another order of addition count as equal.
    observed = abs(values.sum()) - 1e-9 * np.abs(values).sum()
    if len(values) <= _ENUMERATED:
        patterns = np.arange(2 ** len(values))[:, None] >> np.arange(len(values)) & 1
        return float(np.mean(np.abs((1 - 2 * patterns) @ values) >= observed))
    generator = np.random.default_rng(0)
    reached, left = 1, _RANDOM_FLIPS
    while left:
        rows = min(left, max(1, _FLIPS_AT_ONCE // len(values)))
        flips = 1.0 - 2.0 * generator.integers(0, 2, (rows, len(values)), dtype=np.int8)
        reached += int(np.sum(np.abs(flips @ values) >= observed))
        left -= rows
    return reached / (_RANDOM_FLIPS + 1)


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Each p after Holm's correction (Scandinavian Journal of Statistics 6, 1979); None stays None and does not count.

    The chance that any of several comparisons of equal models shows a difference is then at most 5 %.
    """
    order = sorted((p, place) for place, p in enumerate(ps) if p is not None)
    corrected: list[float | None] = [None] * len(ps)
    largest = 0.0
    for rank, (p, place) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(order) - rank)))
        corrected[place] = largest
    return corrected


def more_prompts(change: float, deviation: float, count: int) -> int | None:
    """How many more prompts show the change with a chance of 80 %, if the true one is as large as this one.

    From the normal approximation of the test's power, n = ((z(0.975) + z(0.8)) · deviation / change)²; two significant
    digits. None if nothing can be said: no change, no deviation, or more than a million prompts.

    Args:
        change: the mean over prompts.
        deviation: of one prompt's change.
        count: of the prompts at hand.
    """
    if not change or not deviation:
        return None
    quantiles = _Z + NormalDist().inv_cdf(_POWER)
    return _rounded_up((quantiles * deviation / change) ** 2 - count)


def more_prompts_corrected(p: float, p_adjusted: float, count: int) -> int | None:
    """As `more_prompts`, of a change that a correction for several comparisons hides, from its test alone.

    The correction multiplied p by a factor, so p has to be below 5 % divided by it. How far the change is from 0, in
    standard errors, follows from p; it grows with the square root of the number of prompts.

    Args:
        p, p_adjusted: of the test, and after the correction.
        count: of the prompts at hand.
    """
    if not 0 < p < p_adjusted:
        return None
    errors = NormalDist().inv_cdf(1 - p / 2)
    quantiles = NormalDist().inv_cdf(1 - ALPHA * p / p_adjusted / 2) + NormalDist().inv_cdf(_POWER)
    return None if errors <= 0 else _rounded_up(count * (quantiles / errors) ** 2 - count)


def _rounded_up(needed: float) -> int | None:
    """A number of prompts with two significant digits; None if it is none, or more than a million."""
    if not 0 < needed <= _MOST_PROMPTS:
        return None
    step: int = 10 ** max(0, math.floor(math.log10(needed)) - 1)
    return max(1, math.ceil(needed / step)) * step


def _deviation(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    centre = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1))


def interval_of_median(values: Sequence[float]) -> Interval | None:
    """The interval of a median between order statistics (Hettmansperger & Sheather, Stat. Prob. Lett. 4, 1986).

    It lies between the narrowest interval of two order statistics that holds at least 95 %, and the next narrower one.

    Returns: None for fewer than six values.
    """
    from scipy.stats import binom

    n, ordered = len(values), sorted(values)
    if n < _FEWEST_FOR_A_MEDIAN:
        return None
    k = int(binom.ppf(ALPHA / 2, n, 0.5))  # values below the lower end of the wider interval
    wider, narrower = (1 - 2 * float(binom.cdf(below, n, 0.5)) for below in (k - 1, k))
    part = (wider - CONFIDENCE) / (wider - narrower)
    weight = (n - k) * part / (k + (n - 2 * k) * part)
    low = (1 - weight) * ordered[k - 1] + weight * ordered[k]
    high = (1 - weight) * ordered[n - k] + weight * ordered[n - k - 1]
    return Interval(low, high)


def _with_skewness(students: Interval, values: Sequence[float]) -> Interval:
    """Student's interval of the mean of values, widened to hold that of Hall's transformation, too.

    With the skewness g and the t statistic T of n values, T + g T² / (3 √n) + g² T³ / (27 n) + g / (6 √n) is nearly
    Student's; its inverse has a closed form.
    """
    import numpy as np
    from scipy.stats import skew, t

    n = len(values)
    centre, deviation = math.fsum(values) / n, _deviation(values)
    g = float(skew(values))
    if not math.isfinite(g) or abs(g) < _NO_SKEWNESS:
        return students
    quantile = float(t.ppf(1 - ALPHA / 2, n - 1))
    low, high = (
        centre - deviation * 3 / g * float(np.cbrt(1 + g * (sign * quantile / math.sqrt(n) - g / (6 * n))) - 1)
        for sign in (1, -1)
    )
    return Interval(min(low, students.low), max(high, students.high))


def _tango(up: int, down: int, count: int) -> Interval:
    """The changes that the score test does not reject, equations 3 to 5 of Tango (1998)."""
    from scipy.optimize import brentq

    def distance(change: float) -> float:
        """The score statistic, without its division, which has no limit where the variance is 0."""
        b = -up - down + (2 * count - up + down) * change
        c = -down * change * (1 - change)
        lost = (math.sqrt(max(0.0, b * b - 8 * count * c)) - b) / (4 * count)  # the likeliest share of `down`
        variance = count * (2 * lost + change * (1 - change))
        return (
            up - down - count * change - math.copysign(_Z, up - down - count * change) * math.sqrt(max(0.0, variance))
        )

    value = (up - down) / count
    tiny = 1e-12
    low = -1.0 if up == 0 and down == count else brentq(distance, -1.0, value - tiny)
    high = 1.0 if down == 0 and up == count else brentq(distance, value + tiny, 1.0)
    return Interval(float(low), float(high))
