"""What active choice teaches beside random order, on a simulated taste: part of `python -m benchmarks.annotators`.

An item is a pair of answers, given by the difference of their 16 features; the taste is a weight for each. Four heads
learn from 40 earlier labels, each from a random 70 % of them. Then labels are taken from 400 new items in some order. A
model that learns from all labels is tested on 1,000 further pairs: the share of pairs that it orders as the taste does.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean, stdev

import numpy as np
from rich.table import Table
from scipy.optimize import minimize
from scipy.special import expit

from prefine.annotation.priorities import CHANCE, expected_information, mixed_order

FEATURES, HEADS, EARLIER, POOL, HELD_OUT = 16, 4, 40, 400, 1_000
LABELS = (0, 10, 25, 50, 100, 200)
SHARPNESS = 3.0  # logits of a pair's label have about this standard deviation: 15 % of labels are against the taste
ROUND = 25  # labels after which the heads learn and score again

Curve = dict[int, list[float]]
Scores = dict[int, list[list[float]]]
# Standard deviations of features: in earlier labels, and in the new items.
SETTINGS = {
    "items as before": (np.linspace(1.5, 0.2, FEATURES), np.linspace(1.5, 0.2, FEATURES)),
    "half of the features nearly new": (np.repeat([1.0, 0.1], FEATURES // 2), np.ones(FEATURES)),
}


def curves(trials: int) -> dict[tuple[str, str], Curve]:
    """Setting and order -> number of labels -> accuracy in each trial; the same tastes and items for all orders."""
    found: dict[tuple[str, str], Curve] = {}
    for setting, spreads in SETTINGS.items():
        for trial in range(trials):
            for order, curve in _trial(trial, *spreads).items():
                for labels, accuracy in curve.items():
                    found.setdefault((setting, order), {}).setdefault(labels, []).append(accuracy)
    return found


def curve_table(found: dict[tuple[str, str], Curve]) -> Table:
    """The curves as a table, with the standard error of the difference from random order."""
    table = Table("items", "order", *(f"{n} labels" for n in LABELS), title="active choice: pairs ordered right, %")
    for (setting, order), curve in found.items():
        cells = []
        for labels in LABELS:
            cell = f"{100 * fmean(curve[labels]):.1f}"
            if order != "random" and labels:
                gains = [a - b for a, b in zip(curve[labels], found[setting, "random"][labels], strict=True)]
                cell += f" ({100 * fmean(gains):+.1f} ± {100 * stdev(gains) / len(gains) ** 0.5:.1f})"
            cells.append(cell)
        table.add_row(setting, order, *cells)
    return table


def _trial(seed: int, before: np.ndarray, after: np.ndarray) -> dict[str, dict[int, float]]:
    rng = np.random.default_rng(seed)
    taste = rng.normal(0, 1, FEATURES)
    earlier, pool, test = (
        rng.normal(0, 1, (count, FEATURES)) * spread
        for count, spread in ((EARLIER, before), (POOL, after), (HELD_OUT, after))
    )
    sharpness = SHARPNESS / np.linalg.norm(taste * after)
    known, labels = ((rng.random(len(x)) < expit(sharpness * x @ taste)).astype(float) for x in (earlier, pool))

    def accuracy(chosen: list[int]) -> float:
        weights = _fit(np.vstack([earlier, pool[chosen]]), np.concatenate([known, labels[chosen]]))
        return float(np.mean((test @ weights > 0) == (test @ taste > 0)))

    def scores(chosen: list[int]) -> Scores:
        """What heads that learnt from the earlier labels and the chosen ones say of the items left."""
        x, y = np.vstack([earlier, pool[chosen]]), np.concatenate([known, labels[chosen]])
        parts = [rng.permutation(len(x))[: int(0.7 * len(x))] for _ in range(HEADS)]
        heads = np.array([_fit(x[part], y[part]) for part in parts])
        left = sorted(set(range(POOL)) - set(chosen))
        return {item: [(heads @ pool[item]).tolist(), [0.0] * HEADS] for item in left}

    orders: dict[str, Callable[[], list[int]]] = {
        "random": lambda: rng.permutation(POOL).tolist(),
        "disagreement": lambda: mixed_order(expected_information(scores([])), seed, 0.0),
        f"disagreement, {100 * CHANCE:g} % by chance": lambda: mixed_order(expected_information(scores([])), seed),
        f"so, scored again after {ROUND}": lambda: _in_rounds(scores, seed),
    }
    found = {}
    for name, order in orders.items():
        items = order()
        found[name] = {count: accuracy(items[:count]) for count in LABELS}
    return found


def _in_rounds(scores: Callable[[list[int]], Scores], seed: int) -> list[int]:
    chosen: list[int] = []
    while len(chosen) < max(LABELS):
        chosen += mixed_order(expected_information(scores(chosen)), seed + len(chosen))[:ROUND]
    return chosen


def _fit(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Logistic regression with a normal prior of variance 1 on the weights."""

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        logits = x @ weights
        value = np.logaddexp(0, logits).sum() - y @ logits + weights @ weights / 2
        return float(value), x.T @ (expit(logits) - y) + weights

    found: np.ndarray = minimize(loss, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B").x
    return found
