"""python -m benchmarks.coverage: how often intervals of comparisons contain the truth, by simulation: 95 % is right.

Of means of skewed changes, medians, shares, win rates with ties and at equal length; and how often two equal models
show no difference. `--trials` sets how many comparisons are simulated for each figure: with 4,000 its standard error
is 0.3 points. What takes longer has fewer: perplexities a quarter of them, BCa bootstraps an eighth, whole comparisons
a sixteenth.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from functools import cache
from statistics import fmean
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import bootstrap

from prefine.comparisons.answer_metrics import perplexity
from prefine.comparisons.length_control import length_controlled
from prefine.comparisons.result import Winner
from prefine.comparisons.statistics import (
    ALL_CATEGORIES,
    DEGENERATE,
    corrected,
    corrected_benchmarks,
    paired_metric,
    regression_group,
)
from prefine.comparisons.verdict import verdict
from prefine.comparisons.win_rate import win_rate
from prefine.intervals import Interval, Share, mean
from prefine.significance import change_of_share, interval_of_mean, interval_of_median

Draw = Callable[[np.random.Generator, int], Any]

SIZES = (30, 100, 400)
TRIALS = 4_000
# Changes of a prompt, candidate minus baseline, and their mean.
CHANGES: dict[str, tuple[Draw, float]] = {
    "normal": (lambda rng, n: rng.normal(0.2, 1, n), 0.2),
    "heavy tails (t, 3 degrees)": (lambda rng, n: rng.standard_t(3, n), 0.0),
    "gamma, skewness 1.4 (as KL)": (lambda rng, n: rng.gamma(2, 1, n), 2.0),
    "exponential, skewness 2": (lambda rng, n: rng.exponential(1, n), 1.0),
    "log-normal, skewness 6.2": (lambda rng, n: rng.lognormal(0, 1, n), math.exp(0.5)),
    "lengths, each times a log-normal": (
        lambda rng, n: rng.lognormal(4, 0.6, n) * (rng.lognormal(0.1, 0.4, n) - 1),
        math.exp(4 + 0.18) * (math.exp(0.1 + 0.08) - 1),
    ),
    "7 of 10 unchanged, else normal": (lambda rng, n: (rng.random(n) < 0.3) * rng.normal(0.5, 1, n), 0.15),
    "9 of 10 unchanged, else exponential": (lambda rng, n: (rng.random(n) < 0.1) * rng.exponential(1, n), 0.1),
}


def coverage(trials: int = TRIALS, only: str = "") -> dict[str, dict[int, float]]:
    """By what is estimated and how: by number of prompts the share of trials whose interval contains the truth.

    Args:
        only: a part of the names of those that are wanted.
    """
    found: dict[str, dict[int, float]] = {}
    for n in SIZES:
        for name, contained, share in _questions(n):
            if only not in name:
                continue
            rng = np.random.default_rng([n, *name.encode()])
            answers = [contained(rng) for _ in range(max(4, trials // share))]
            found.setdefault(name, {})[n] = fmean(answer for answer in answers if answer is not None)
    return found


def coverage_table(found: dict[str, dict[int, float]]) -> Table:
    """The figures as a table."""
    table = Table("estimate", *(f"{n} prompts" for n in SIZES), title="intervals that contain the truth, %")
    for name, by_size in found.items():
        table.add_row(name, *(f"{100 * by_size[n]:.1f}" for n in SIZES))
    return table


Question = tuple[str, Callable[[np.random.Generator], bool | None], int]


def _questions(n: int) -> Iterator[Question]:
    """What is asked of n prompts: its name, one trial (None if there is no interval), the divisor of the trials."""
    for name, (draw, true) in CHANGES.items():
        for how, interval, share in (("", interval_of_mean, 1), (", t alone", _students, 1), (", BCa", _bca, 8)):
            yield f"mean of changes, {name}{how}", _of_values(draw, true, interval, n), share
    for name in ("exponential, skewness 2", "log-normal, skewness 6.2"):
        draw, middle = CHANGES[name][0], math.log(2) if name.startswith("exp") else 1.0
        yield f"median of changes, {name}", _of_values(draw, middle, interval_of_median, n), 1
    yield "share, drawn from 5 to 95 %", lambda rng: _share(rng, n), 1
    for name, wins, losses in (
        ("equal models, no ties", 0.5, 0.5),
        ("equal models, 30 % ties", 0.35, 0.35),
        ("equal models, 90 % ties", 0.05, 0.05),
        ("60 % wins, 20 % ties", 0.6, 0.2),
        ("wins, ties and losses drawn", None, None),
    ):
        yield f"win rate, {name}", _of_wins(n, wins, losses), 1
    for slope in (0.0, 1.0):
        yield f"win rate at equal length, slope {slope:g}", _at_equal_length(n, slope), 2
    yield "perplexity", _of_perplexity(n), 4
    what = "12 metrics, 2 judges, the regression set and 10 benchmarks"
    yield f"equal models: nothing shown in {what}", lambda rng: _nothing(rng, n)[0], 16
    yield "equal models: the verdict is that no difference is shown", lambda rng: _nothing(rng, n)[1], 16
    yield "equal models: the verdict names no regression", lambda rng: _nothing(rng, n)[2], 16


def _students(values: Any) -> Interval | None:
    found = mean(values)
    return found.interval if found else None


def _bca(values: Any) -> Interval | None:
    if np.ptp(values) == 0:
        return None
    low, high = bootstrap((values,), np.mean, n_resamples=999, method="BCa", rng=0).confidence_interval
    return None if math.isnan(low) else Interval(float(low), float(high))


def _of_values(
    draw: Draw, true: float, interval: Callable[[Any], Interval | None], n: int
) -> Callable[[np.random.Generator], bool | None]:
    def contained(rng: np.random.Generator) -> bool | None:
        found = interval(draw(rng, n))
        return None if found is None else found.contains(true)

    return contained


def _share(rng: np.random.Generator, n: int) -> bool | None:
    true = rng.uniform(0.05, 0.95)
    found = Share(rng.binomial(n, true) / n, n).interval
    return None if found is None else found.contains(true)


def _of_wins(n: int, wins: float | None, losses: float | None) -> Callable[[np.random.Generator], bool | None]:
    def contained(rng: np.random.Generator) -> bool | None:
        win, loss = rng.dirichlet([1, 1, 1])[:2] if wins is None or losses is None else (wins, losses)
        up, down, _ = rng.multinomial(n, [win, loss, 1 - win - loss])
        found = change_of_share(int(up), int(down), n)
        return None if found is None or found.interval is None else found.interval.contains(win - loss)

    return contained


def _at_equal_length(n: int, slope: float) -> Callable[[np.random.Generator], bool | None]:
    """A judge who wins 60 % for the candidate at equal length; the candidate is longer by half a deviation."""

    def contained(rng: np.random.Generator) -> bool | None:
        lengths = rng.normal(20, 40, n)
        logits = math.log(0.6 / 0.4) + slope * np.tanh(lengths / 40)
        wins = (rng.random(n) < 1 / (1 + np.exp(-logits))).astype(float)
        rate = length_controlled(wins.tolist(), lengths.tolist()).rate
        return None if rate is None or rate.low is None or rate.high is None else rate.low <= 0.6 <= rate.high

    return contained


def _of_perplexity(n: int) -> Callable[[np.random.Generator], bool | None]:
    """Answers of log-normal lengths; the candidate's loss per token is lower by 0.1, by more in long ones."""

    def contained(rng: np.random.Generator) -> bool | None:
        tokens = np.ceil(rng.lognormal(4, 0.8, n))
        was = rng.normal(2.0, 0.3, n)
        falls = 0.1 + 0.05 * np.tanh((tokens - math.exp(4)) / 100) + rng.normal(0, 0.2, n)
        found = perplexity(((was - falls) * tokens).tolist(), (was * tokens).tolist(), tokens.tolist())
        if found.change is None or found.change.low is None or found.change.high is None or found.baseline is None:
            return None
        # At the baseline's perplexity, the interval is that of the change of the loss per token.
        low, high = (math.log1p(end / found.baseline.value) for end in (found.change.low, found.change.high))
        return low <= -_fall_per_token() <= high

    return contained


@cache
def _fall_per_token() -> float:
    """The true fall of the loss per token, from many lengths."""
    tokens = np.ceil(np.random.default_rng(0).lognormal(4, 0.8, 4_000_000))
    return float(np.sum((0.1 + 0.05 * np.tanh((tokens - math.exp(4)) / 100)) * tokens) / np.sum(tokens))


# Items of each category of the regression set, and how many of them the bundled model passes (docs/evaluation.md).
_CATEGORIES = ((51, 16), (37, 8), (24, 6), (32, 24), (18, 1), (18, 10), (27, 6), (20, 5))
_BENCHMARKS, _EXAMPLES = 10, 100


def _nothing(rng: np.random.Generator, n: int) -> tuple[bool, bool, bool]:
    """Of two equal models: whether a comparison shows nothing; whether its verdict is that no difference is shown;
    whether it names no regression.
    """
    prompts = rng.normal(0, 1, (6, n))
    metrics = [
        paired_metric(f"m{i}", "m", "", "", "higher", *(prompts[i % 6] + rng.lognormal(0, 1, (2, n)))) for i in range(6)
    ]
    for i in range(6):
        shares = (rng.random((2, n)) < 0.1).astype(float)
        name = f"s{i}" if i else DEGENERATE  # which is not corrected for the others
        metrics.append(paired_metric(name, "s", "share", "", "lower", *shares.tolist()))
    choices: list[Winner] = ["candidate", "tie", "baseline"]
    rates = [
        win_rate(name, [choices[k] for k in rng.choice(3, n, p=[0.4, 0.2, 0.4])], []) for name in ("one", "another")
    ]
    passed = [rng.random((2, size)) < of / size for size, of in _CATEGORIES]
    whole = np.concatenate(passed, 1)
    groups = [
        regression_group(name, "g", *each.tolist(), [str(i) for i in range(each.shape[1])])
        for name, each in ((ALL_CATEGORIES, whole), *((f"g{i}", each) for i, each in enumerate(passed)))
    ]
    right = (rng.random((_BENCHMARKS, 2, _EXAMPLES)) < 0.4).astype(float)
    tasks = [
        paired_metric(f"t{i}", "t", "share", "benchmark", "higher", *each.tolist()) for i, each in enumerate(right)
    ]
    benchmarks = corrected_benchmarks(tasks)
    parts = (*corrected(metrics, rates, groups, "one"), benchmarks)
    found = verdict("one", *parts)
    is_nothing = all(each.finding == "no difference shown" for part in parts for each in part)
    return is_nothing, found.decision == "no difference shown", not found.regressions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--only", default="", help="figures whose name has this text")
    options = parser.parse_args()
    Console().print(coverage_table(coverage(options.trials, options.only)))


if __name__ == "__main__":
    main()
