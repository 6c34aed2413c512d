"""How far annotators agree beyond chance: Krippendorff's α and Cohen's κ with intervals over items."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

from prefine.annotation.ratings import DRAW, LOSS, WIN, Rated, rated
from prefine.annotation.records import Judgement
from prefine.annotation.resampling import bootstrap_intervals
from prefine.formatting import INTERVAL, figure, figure_range, plural
from prefine.intervals import Interval

Level = Literal["nominal", "ordinal", "interval"]
Weights = Literal["none", "linear", "quadratic"]

_VALUES = (LOSS, DRAW, WIN)
_ALPHA, _KAPPA = "Krippendorff's α", "Cohen's κ"
_RELIABLE, _TENTATIVE = 0.8, 0.667  # Krippendorff 2004, Content Analysis, section 11.4


@dataclass(frozen=True, slots=True)
class Agreement:
    """A coefficient of agreement: 1 is perfect, 0 is what chance gives, below 0 is worse than chance.

    Attributes:
        measure: "Krippendorff's α" or "Cohen's κ".
        value: None if it is not defined; then `why_not` says why.
        interval: of 95 %, over items; None for fewer than six items, or if all items agree.
        items: with at least two annotators.
        votes: on these items.
        sentence: the figure in words.
    """

    measure: str
    value: float | None
    interval: Interval | None
    items: int
    votes: int
    why_not: str
    sentence: str


def krippendorff_alpha(units: Sequence[Sequence[float]], level: Level = "nominal") -> float | None:
    """Krippendorff's α (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section C and following).

    Args:
        units: for each unit the values that it got, in any order. Units with fewer than two do not count.
        level: nominal: two values are equal or not; ordinal: the difference of ranks counts; interval: of numbers.

    Returns: None if no unit has two values, or if all values are the same.
    """
    import numpy as np

    values = sorted({value for unit in units for value in unit})
    counts = np.array([[list(unit).count(value) for value in values] for unit in units], float)
    if not values:
        return None
    return _defined(_alpha(_coincidences(counts).sum(axis=0)[None], level, values))


def cohen_kappa(table: Any, weights: Weights = "none") -> float | None:
    """Cohen's κ (Educational and Psychological Measurement 20, 1960), weighted as in Psych. Bulletin 70, 1968.

    Args:
        table: (values, values): how often the first annotator said the row's and the second the column's value.
        weights: how much a disagreement counts: the same, by the distance of the values, or by its square.

    Returns: None without votes, or if both gave one and the same value only.
    """
    import numpy as np

    return _defined(_kappa(np.asarray(table, float)[None], weights))


def agreement(judgements: Sequence[Judgement], criterion: str | None = None) -> Agreement:
    """α of all annotators on the whole, or on a criterion. Ordinal: a tie is nearer to either side than they are."""
    return _alpha_of(rated(judgements, criterion), "All annotators")


def agreement_by_criterion(judgements: Sequence[Judgement]) -> dict[str, Agreement]:
    """α of all annotators on each criterion."""
    return {name: agreement(judgements, name) for name in sorted({each.criterion or "" for each in judgements} - {""})}


def agreement_by_annotator(judgements: Sequence[Judgement], criterion: str | None = None) -> dict[str, Agreement]:
    """α of each annotator with the others: of this annotator and one of the others on each item, drawn by chance.

    The expectation of α's coincidences over these draws is taken, so that nothing is random.
    """
    units = rated(judgements, criterion)
    names = sorted({name for unit in units for name in unit.values})
    return {name: _alpha_of(units, name, of=name) for name in names}


def agreement_of_pairs(
    judgements: Sequence[Judgement], criterion: str | None = None
) -> dict[tuple[str, str], Agreement]:
    """κ of each two annotators who judged a common item, with linear weights: a tie is half a disagreement."""
    import numpy as np

    units = rated(judgements, criterion)
    names = sorted({name for unit in units for name in unit.values})
    found = {}
    for pair in combinations(names, 2):
        common = [unit for unit in units if unit.values.keys() >= set(pair)]
        if common:
            tables = np.array([np.outer(*(_one(unit.values[name]) for name in pair)) for unit in common])
            items = _by_item(common, tables)
            value, interval = _with_interval(items, lambda tables: _kappa(tables, "linear"))
            found[pair] = _in_words(_KAPPA, " and ".join(pair), value, interval, len(items), 2 * len(items))
    return found


def _alpha_of(units: Sequence[Rated], who: str, of: str | None = None) -> Agreement:
    """α of units; of one annotator with the others if `of` names one."""
    import numpy as np

    several = [unit for unit in units if len(unit.values) > 1 and (of is None or of in unit.values)]
    if not several:
        reason = f"{who}: agreement is not known: no item has votes of two annotators."
        return Agreement(_ALPHA, None, None, 0, 0, "no item has votes of two annotators", reason)
    counts = np.array([sum(_one(value) for value in unit.values.values()) for unit in several])
    if of is None:
        added = _coincidences(counts)
    else:
        own = np.array([_one(unit.values[of]) for unit in several])
        others = (counts - own) / (counts.sum(axis=1, keepdims=True) - 1)
        crossed = own[:, :, None] * others[:, None, :]
        added = crossed + crossed.transpose(0, 2, 1)
    items = _by_item(several, added)
    value, interval = _with_interval(items, lambda sums: _alpha(sums, "ordinal", _VALUES))
    votes = len({(unit.item, name) for unit in several for name in unit.values})  # a ranking is one, of several pairs
    return _in_words(_ALPHA, who, value, interval, len(items), votes, others=of is not None)


def _with_interval(items: Any, coefficient: Callable[[Any], Any]) -> tuple[float | None, Interval | None]:
    """A coefficient of matrices (n, values, values), from what each item adds to the matrix (items, values²)."""

    def of(sums: Any) -> Any:
        return coefficient(sums.reshape(-1, len(_VALUES), len(_VALUES)))[:, None]

    return _defined(of(items.sum(axis=0))[:, 0]), bootstrap_intervals(items, of)[0]


def _one(value: float) -> Any:
    """A value as counts of _VALUES."""
    import numpy as np

    return np.array([float(value == each) for each in _VALUES])


def _by_item(units: Sequence[Rated], added: Any) -> Any:
    """What units add, summed by item: (items, values²)."""
    import numpy as np

    places = {item: place for place, item in enumerate(dict.fromkeys(unit.item for unit in units))}
    sums = np.zeros((len(places), added.shape[1] * added.shape[2]))
    np.add.at(sums, [places[unit.item] for unit in units], added.reshape(len(units), -1))
    return sums


def _coincidences(counts: Any) -> Any:
    """Pairs of values within units (units, values, values); each unit of m values adds m, one with m < 2 nothing."""
    import numpy as np

    size = counts.sum(axis=1)
    pairs = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(counts.shape[1])
    return pairs / np.where(size > 1, size - 1, np.inf)[:, None, None]


def _alpha(coincidences: Any, level: Level, values: Sequence[float]) -> Any:
    """α of each matrix of coincidences (n, values, values); NaN where all values are the same."""
    import numpy as np

    given = coincidences.sum(axis=2)
    total = given.sum(axis=1)
    if level == "nominal":
        difference = np.broadcast_to(1 - np.eye(len(values)), coincidences.shape)
    else:
        # The ordinal difference of two values is that of their mean ranks (Krippendorff's sum of n_g, rewritten).
        place = given.cumsum(axis=1) - given / 2 if level == "ordinal" else np.broadcast_to(values, given.shape)
        difference = (place[:, :, None] - place[:, None, :]) ** 2
    observed = (coincidences * difference).sum(axis=(1, 2))
    expected = (given[:, :, None] * given[:, None, :] * difference).sum(axis=(1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(expected > 0, 1 - (total - 1) * observed / expected, np.nan)


def _kappa(tables: Any, weights: Weights) -> Any:
    """κ of each table (n, values, values); NaN where it is not defined."""
    import numpy as np

    place = np.arange(tables.shape[1])
    distance = np.abs(place[:, None] - place[None, :]).astype(float)
    weight = {"none": np.sign(distance), "linear": distance, "quadratic": distance**2}[weights]
    total = tables.sum(axis=(1, 2))
    chance = tables.sum(axis=2)[:, :, None] * tables.sum(axis=1)[:, None, :]
    observed, expected = ((each * weight).sum(axis=(1, 2)) for each in (tables, chance))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(expected > 0, 1 - total * observed / expected, np.nan)


def _defined(values: Any) -> float | None:
    value = float(values[0])
    return value if value == value else None


def _in_words(
    measure: str, who: str, value: float | None, interval: Interval | None, items: int, votes: int, others: bool = False
) -> Agreement:
    on = f"{plural(votes, 'vote')} on {plural(items, 'item')}"
    if value is None:
        why = "all votes are the same, so that chance alone gives as much"
        return Agreement(measure, None, None, items, votes, why, f"{who}: agreement is not defined: {why} ({on}).")
    ends = f"{INTERVAL} {figure_range(interval)}" if interval else "no interval"
    text = f"{who}{' with the others' if others else ''}: {measure} = {figure(value, 2)} ({ends}), {on}."
    if measure == _ALPHA and not others:
        text += " " + _meaning(value)
    return Agreement(measure, value, interval, items, votes, "", text)


def _meaning(alpha: float) -> str:
    if alpha >= _RELIABLE:
        return "Krippendorff calls values from 0.8 reliable."
    if alpha >= _TENTATIVE:
        return "Krippendorff allows tentative conclusions from 0.667, and calls values from 0.8 reliable."
    return "Below 0.667 Krippendorff advises against conclusions from single votes: use several votes an item."
