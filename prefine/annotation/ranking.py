"""Models ranked by the votes on pairs of their answers: the Bradley–Terry model, fitted by choix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefine.annotation.ratings import DRAW, WIN, rated
from prefine.annotation.records import Judgement
from prefine.annotation.resampling import bootstrap_intervals
from prefine.formatting import INTERVAL, figure, figure_range, listing, percent, percent_range
from prefine.intervals import Interval

_RESAMPLES = 1_000  # each is a fit
_MOST_ITERATIONS = 1_000


@dataclass(frozen=True, slots=True)
class Ranked:
    """A model's place.

    Attributes:
        strength: log-odds; the mean of all models is 0. The chance that a model is preferred to another is
            1 / (1 + exp(other's strength - its strength)).
        interval: of the strength; None if there are too few items.
        wins, ties, losses: comparisons; a vote that ranks several answers gives several.
        below: the model in the next place; None for the last one.
        over_next: the chance that it is preferred to that model.
        over_next_interval: of that chance.
    """

    model: str
    strength: float
    interval: Interval | None
    wins: int
    ties: int
    losses: int
    below: str | None
    over_next: float | None
    over_next_interval: Interval | None

    @property
    def above_next(self) -> bool:
        """Whether the interval of `over_next` is above one half."""
        return self.over_next_interval is not None and self.over_next_interval.low > 0.5

    @property
    def sentence(self) -> str:
        """The figures in words."""
        ends = f"{INTERVAL} {figure_range(self.interval, signed=True)}" if self.interval else "no interval"
        text = f"{self.model}: strength {figure(self.strength, 2, signed=True)} ({ends})"
        if self.below is None:
            return f"{text}."
        between = f" ({INTERVAL} {percent_range(self.over_next_interval)})" if self.over_next_interval else ""
        shown = "" if self.above_next else "; which of the two is better is not shown"
        return f"{text}; preferred to {self.below} in {percent(self.over_next)}{between}{shown}."


@dataclass(frozen=True, slots=True)
class Ranking:
    """Models, the strongest first.

    Attributes:
        models: empty if there is no ranking; then `why_not` says why.
        items, votes: with a vote on answers of two models.
    """

    models: tuple[Ranked, ...]
    items: int
    votes: int
    why_not: str = ""

    @property
    def sentences(self) -> list[str]:
        """The ranking in words, a sentence a model."""
        return [f"{place}. {each.sentence}" for place, each in enumerate(self.models, start=1)] or [
            f"No ranking: {self.why_not}."
        ]


def ranking(judgements: Sequence[Judgement], criterion: str | None = None) -> Ranking:
    """The Bradley–Terry ranking (Biometrika 39, 1952) by maximum likelihood; a tie is half a win for either side.

    Every vote is a comparison; the intervals are by a bootstrap over items, as votes on one item are not independent.
    There is no ranking if the comparisons do not connect all models, or if some models won every comparison with the
    rest: no finite strength is the likeliest then (Ford 1957, American Mathematical Monthly 64).
    """
    import numpy as np

    pairs = [
        each
        for each in judgements
        if each.criterion == criterion and not each.repeat and len(set(each.models)) == len(each.answers) == 2
    ]
    models = sorted({model for each in pairs for model in each.models})
    won, tied = _results(pairs, models, criterion)
    items = won + tied / 2
    wins = items.sum(axis=0)
    votes = len({(each.item, each.annotator) for each in pairs})
    if reason := _why_not(wins, models):
        return Ranking((), len(items), votes, reason)
    strengths = _fit(wins)
    order = [int(place) for place in np.argsort(-strengths, kind="stable")]
    width = len(models)

    def of_resamples(sums: Any) -> Any:
        fits = np.array([_fit_of_resample(each.reshape(width, width)) for each in sums])[:, order]
        return np.concatenate([fits, fits[:, :-1] - fits[:, 1:]], axis=1)

    intervals = bootstrap_intervals(items.reshape(len(items), -1), of_resamples, _RESAMPLES)
    counts = [won.sum(axis=(0, 2)), tied.sum(axis=(0, 2)), won.sum(axis=(0, 1))]
    ranked = []
    for rank, place in enumerate(order):
        below = order[rank + 1] if rank + 1 < width else None
        gap = None if below is None else intervals[width + rank]
        own_wins, ties, losses = (int(count[place]) for count in counts)
        ranked.append(
            Ranked(
                model=models[place],
                strength=float(strengths[place]),
                interval=intervals[rank],
                wins=own_wins,
                ties=ties,
                losses=losses,
                below=None if below is None else models[below],
                over_next=None if below is None else _chance(strengths[place] - strengths[below]),
                over_next_interval=None if gap is None else Interval(_chance(gap.low), _chance(gap.high)),
            )
        )
    return Ranking(tuple(ranked), len(items), votes)


def _results(pairs: Sequence[Judgement], models: Sequence[str], criterion: str | None) -> tuple[Any, Any]:
    """(items, models, models) twice: how often the row's model won against the column's, and how often they tied."""
    import numpy as np

    place = {model: number for number, model in enumerate(models)}
    of = {answer: place[model] for each in pairs for answer, model in zip(each.answers, each.models, strict=True)}
    units = rated(pairs, criterion)
    items = {item: number for number, item in enumerate(dict.fromkeys(unit.item for unit in units))}
    wins, ties = np.zeros((2, len(items), len(models), len(models)))
    for unit in units:
        first, second = sorted(of[answer] for answer in unit.answers)  # values are from the first name's side
        for value in unit.values.values():
            if value == DRAW:
                ties[items[unit.item], [first, second], [second, first]] += 1
            else:
                wins[items[unit.item], *((first, second) if value == WIN else (second, first))] += 1
    return wins, ties


def _why_not(wins: Any, models: Sequence[str]) -> str:
    """Why there is no ranking; empty if there is one."""
    from scipy.sparse.csgraph import connected_components

    if len(models) < 2 or not wins.sum():
        return "there are no votes on answers of two models"
    parts, part = connected_components(wins, connection="weak")
    if parts > 1:
        groups = [listing([models[i] for i in range(len(models)) if part[i] == number]) for number in range(parts)]
        return f"no votes compare {' with '.join(groups[:2])}: add items that do"
    parts, part = connected_components(wins, connection="strong")
    for number in range(parts if parts > 1 else 0):
        inside = part == number
        if not wins[~inside][:, inside].sum():
            names = listing([model for model, own in zip(models, inside, strict=True) if own])
            return f"{names} won every comparison with the other models, so that no finite strength fits"
    return ""


def _fit(wins: Any) -> Any:
    """Log-odds with mean 0 of the models, by maximum likelihood; `wins` must connect all of them both ways."""
    from choix import ilsr_pairwise_dense

    found = ilsr_pairwise_dense(wins, max_iter=_MOST_ITERATIONS)
    return found - found.mean()


def _fit_of_resample(wins: Any) -> Any:
    """As `_fit`; NaN for a resample that has no finite estimate."""
    import numpy as np
    from scipy.sparse.csgraph import connected_components

    if connected_components(wins, connection="strong")[0] > 1:
        return np.full(len(wins), np.nan)
    return _fit(wins)


def _chance(difference: float) -> float:
    from scipy.special import expit

    return float(expit(difference))
