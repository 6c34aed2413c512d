"""Active choice: items ordered so that the next labels teach a reward model the most.

docs/annotation.md has the curve against random order (`python -m benchmarks.annotators`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from prefine.errors import PrefineError

CHANCE = 0.2
"""Share of places that chance fills: what all heads are wrong about together is found by chance only."""


def expected_information(scores: Mapping[int, Sequence[Sequence[float]]]) -> dict[int, float]:
    """How much the label of each item is expected to tell about which head is right, in bits.

    BALD (Houlsby et al. 2011, arXiv 1112.5745, equation 2) for pairs: the entropy of the heads' mean preference minus
    the mean entropy of theirs. It is 0 where the heads agree, also where all of them find the answers equally good. A
    head's preference is Bradley–Terry's, of the difference of its scores divided by the root mean square of its
    differences over all items, so that no head counts more for the scale of its scores. Of an item with several pairs
    it is the mean over pairs; of one answer 0.

    Args:
        scores: item -> answers -> heads.

    Raises:
        PrefineError: there is one head only, whose disagreement says nothing, or a score is not finite.
    """
    import numpy as np

    pairs = [
        (item, [first - second for first, second in zip(one, other, strict=True)])
        for item, answers in scores.items()
        for one, other in combinations(answers, 2)
    ]
    if not pairs:
        return dict.fromkeys(scores, 0.0)
    differences = np.array([difference for _, difference in pairs], float)
    if differences.shape[1] < 2:
        raise PrefineError(
            "the reward model has one head, and disagreement needs at least two",
            "Train it with reward.heads: 4, or choose another order.",
        )
    if not np.isfinite(differences).all():
        raise PrefineError("a reward is not a finite number", "Check the reward model: prefine reward check.")
    scale = np.sqrt((differences**2).mean(axis=0))
    found = _disagreement(differences / np.where(scale > 0, scale, 1))
    by_item: dict[int, list[float]] = {item: [] for item in scores}
    for (item, _), value in zip(pairs, found, strict=True):
        by_item[item].append(float(value))
    return {item: sum(values) / len(values) if values else 0.0 for item, values in by_item.items()}


def mixed_order(information: Mapping[int, float], seed: int, chance: float = CHANCE) -> list[int]:
    """Items, the most informative first, with a share `chance` of the places filled at random from those left.

    Items with equal information come in random order.
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    shuffled = [list(information)[place] for place in generator.permutation(len(information))]
    best = sorted(shuffled, key=lambda item: information[item], reverse=True)
    by_chance = iter(shuffled)
    by_information = iter(best)
    taken: dict[int, None] = {}
    for random in generator.random(len(best)) < chance:
        source = by_chance if random else by_information
        taken[next(item for item in source if item not in taken)] = None
    return list(taken)


def priorities(scores: Mapping[int, Sequence[Sequence[float]]], seed: int, chance: float = CHANCE) -> dict[int, float]:
    """Priorities for Project.prioritise, from the number of items down to 1; see `expected_information`."""
    order = mixed_order(expected_information(scores), seed, chance)
    return {item: float(len(order) - place) for place, item in enumerate(order)}


def _disagreement(logits: Any) -> Any:
    """Bits that the label of each pair is expected to tell about the heads; logits (pairs, heads)."""
    import numpy as np
    from scipy.special import entr, expit

    def entropy(p: Any) -> Any:
        return (entr(p) + entr(1 - p)) / math.log(2)

    chosen = expit(logits)
    return np.maximum(0, entropy(chosen.mean(axis=1)) - entropy(chosen).mean(axis=1))  # rounding may be below 0
