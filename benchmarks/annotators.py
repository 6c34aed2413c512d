"""python -m benchmarks.annotators: the statistics of annotation on simulated annotators whose agreement is known.

How often intervals contain the truth, how often an outlier is found and an honest annotator accused, how often equal
models are called different by who looks after every label, and what active choice teaches beside random order. No
torch. `--trials` sets how many projects are simulated for each figure; with 1,000 its standard error is 0.7 points
where 95 % is right.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import fmean, median

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.active_choice import curve_table, curves
from prefine.annotation.agreement import agreement, agreement_of_pairs
from prefine.annotation.ranking import ranking
from prefine.annotation.ratings import DRAW, LOSS, WIN
from prefine.annotation.records import TIE, Judgement
from prefine.annotation.settling import settling
from prefine.annotation.statistics import side_bias, standings
from prefine.significance import change_of_share

TRIALS = 1_000
MODELS = ("new", "old")
SHARES = {WIN: 0.45, DRAW: 0.15, LOSS: 0.4}


def votes(
    rng: np.random.Generator, items: int, agreement_of: dict[str, float], overlap: int | None = None
) -> list[Judgement]:
    """Votes of annotators on items, each by `overlap` of them (None: by all).

    An annotator gives the item's true value with the probability in `agreement_of`, else one drawn from SHARES, from
    which the true values are drawn, too. Two annotators of q and r then agree beyond chance in q · r of the items, so
    that α and κ at every level of measurement are q · r in the limit of many items.
    """
    names = list(agreement_of)
    size = (items, overlap or len(names))
    who = rng.permuted(np.tile(np.arange(len(names)), (items, 1)), axis=1)[:, : size[1]]
    values, shares = np.array(list(SHARES)), list(SHARES.values())
    honest = rng.random(size) < np.array(list(agreement_of.values()))[who]
    given = np.where(honest, rng.choice(values, (items, 1), p=shares), rng.choice(values, size, p=shares))
    return [
        judgement(item, names[person], MODELS, {WIN: "new", DRAW: TIE, LOSS: "old"}[value], rng)
        for item, (people, said) in enumerate(zip(who.tolist(), given.tolist(), strict=True))
        for person, value in zip(people, said, strict=True)
    ]


def judgement(
    item: int, who: str, models: tuple[str, str], winner: str, rng: np.random.Generator | None = None
) -> Judgement:
    """A judgement on two models' answers; the side is random."""
    answers = tuple(f"{model}-{item}" for model in models)
    return Judgement(
        vote=item,
        item=item,
        annotator=who,
        answers=answers,
        models=models,
        winner=winner if winner == TIE else f"{winner}-{item}",
        both_bad=False,
        criterion=None,
        first=answers[int(rng.integers(2)) if rng else 0],
        repeat=False,
        strength=None,
        seconds=10.0,
        at=float(item),
    )


def coverage(trials: int) -> Iterator[tuple[str, int, float, float]]:
    """What is estimated, number of items, share of intervals that contain the truth, mean width of the interval."""
    for items in (20, 50, 200):
        for alpha in (0.3, 0.6, 0.8):
            q = math.sqrt(alpha)
            for name, annotators, overlap in (("3 annotators", 3, None), ("6 annotators, 2 an item", 6, 2)):
                rng = np.random.default_rng([items, annotators, int(100 * alpha)])
                who = {f"a{number}": q for number in range(annotators)}
                found = [agreement(votes(rng, items, who, overlap)).interval for _ in range(trials)]
                intervals = [each for each in found if each]
                hits, width = fmean(each.contains(alpha) for each in intervals), fmean(e.width for e in intervals)
                yield f"α of {alpha:g}, {name}", items, hits, width
            rng = np.random.default_rng([items, int(100 * alpha)])
            pair = {"a": q, "b": q}
            kappas = [agreement_of_pairs(votes(rng, items, pair))["a", "b"].interval for _ in range(trials)]
            known = [each for each in kappas if each]
            yield (
                f"κ of {alpha:g}, 2 annotators",
                items,
                fmean(e.contains(alpha) for e in known),
                fmean(e.width for e in known),
            )


def ranking_coverage(trials: int) -> Iterator[tuple[str, int, float, float]]:
    """The same of the strengths of four models, 30 % ties, two votes an item."""
    strengths = np.array([0.6, 0.2, -0.2, -0.6])
    names = [f"model {number}" for number in range(4)]
    for items in (60, 200):
        rng = np.random.default_rng(items)
        hits, widths = [], []
        for _ in range(max(4, trials // 10)):
            found = ranking(list(_of_four(rng, items, strengths, names)))
            for each in found.models:
                if each.interval is not None:
                    hits.append(each.interval.contains(strengths[names.index(each.model)]))
                    widths.append(each.interval.width)
        yield "Bradley–Terry strengths, 4 models", items, fmean(hits), fmean(widths)


def _of_four(rng: np.random.Generator, items: int, strengths: np.ndarray, names: Sequence[str]) -> Iterator[Judgement]:
    for item in range(items):
        one, other = sorted(rng.choice(4, 2, replace=False))
        chance = 1 / (1 + math.exp(strengths[other] - strengths[one]))
        ties = 0.6 * min(chance, 1 - chance)  # a tie takes as much from wins as from losses: half a win stays unbiased
        for who in ("a", "b"):
            drawn = rng.random()
            win = drawn < chance - ties / 2
            winner = names[one] if win else TIE if drawn < chance + ties / 2 else names[other]
            yield judgement(item, who, (names[one], names[other]), winner)


def outliers(trials: int) -> Iterator[tuple[str, int, float, float]]:
    """Who is sought, items, share of projects that find this one, share that accuse an honest annotator.

    Five honest annotators agree with the truth in 0.8 beyond chance; three judge each item.
    """
    for name, quality in (("nobody", 0.8), ("votes at random", 0.0), ("half as reliable", 0.4)):
        for items in (50, 100, 200, 400):
            rng = np.random.default_rng([items, int(10 * quality)])
            who = {f"honest {number}": 0.8 for number in range(5)} | {"other": quality}
            hit, accused = [], []
            for _ in range(trials):
                found = {each.annotator for each in standings(votes(rng, items, who, 3)) if each.outlier}
                hit.append("other" in found)
                accused.append(bool(found - {"other"}))
            yield name, items, fmean(hit), fmean(accused)


def sides(trials: int) -> Iterator[tuple[str, float]]:
    """How often a side bias is shown in any of six annotators with 60 votes each: of none, and of one with 75 %."""
    for name, bias in (("no bias", 0.0), ("one takes the left side in half of the votes", 0.5)):
        rng = np.random.default_rng(int(10 * bias))
        found = []
        for _ in range(trials):
            project = []
            for number in range(6):
                for item in range(60):
                    vote = judgement(item, f"a{number}", MODELS, MODELS[int(rng.integers(2))], rng)
                    winner = vote.first if number == 0 and rng.random() < bias else vote.winner
                    project.append(replace(vote, vote=len(project), winner=winner))
            found.append(any(each.shown for each in side_bias(project)[1:]))
        yield name, fmean(found)


def stopping(trials: int, items: int = 400) -> Iterator[tuple[str, float, float, float | None]]:
    """Win rate, share of projects called settled, and by the first interval without 50 %, median label of settling."""
    for rate in (0.5, 0.55, 0.6, 0.7):
        rng = np.random.default_rng(int(100 * rate))
        settled, peeked = [], []
        for _ in range(trials):
            wins = rng.random(items) < rate
            project = [judgement(i, "a", MODELS, MODELS[0 if win else 1]) for i, win in enumerate(wins)]
            settled.append(settling(project, *MODELS).settled_at)
            peeked.append(_peeked(np.cumsum(wins)))
        labels = [each for each in settled if each is not None]
        share = len(labels) / trials
        yield f"{100 * rate:g} %", share, fmean(peeked), median(labels) if share > 0.5 else None


_INTERVALS: dict[tuple[int, int], bool] = {}


def _peeked(wins: np.ndarray) -> bool:
    """Whether the interval of the win rate excludes 50 % after any label from the tenth on."""
    for count, won in enumerate(wins.tolist(), start=1):
        if count < 10:
            continue
        if (won, count) not in _INTERVALS:
            found = change_of_share(won, count - won, count)
            _INTERVALS[won, count] = bool(found and found.interval and not found.interval.contains(0))
        if _INTERVALS[won, count]:
            return True
    return False


def tables(trials: int) -> Iterator[Table]:
    """The figures as tables."""
    covered = Table("estimate", "items", "contain the truth", "mean width", title="95 % intervals")
    for name, items, hits, width in (*coverage(trials), *ranking_coverage(trials)):
        covered.add_row(name, str(items), f"{100 * hits:.1f} %", f"{width:.2f}")
    yield covered
    found = Table("sixth annotator", "items", "found", "an honest one accused", title="outliers of six, three an item")
    for name, items, hit, accused in outliers(max(4, trials // 2)):
        found.add_row(name, str(items), f"{100 * hit:.1f} %", f"{100 * accused:.1f} %")
    yield found
    biased = Table("six annotators, 60 votes each", "a bias shown", title="side bias")
    for name, share in sides(max(4, trials // 2)):
        biased.add_row(name, f"{100 * share:.1f} %")
    yield biased
    stopped = Table("win rate", "settled", "by peeking at intervals", "median label", title="400 labels, one an item")
    for name, share, peeked, label in stopping(max(4, trials // 2)):
        stopped.add_row(name, f"{100 * share:.1f} %", f"{100 * peeked:.1f} %", "–" if label is None else f"{label:.0f}")
    yield stopped
    yield curve_table(curves(max(4, trials // 4)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=TRIALS)
    for each in tables(parser.parse_args().trials):
        Console().print(each)


if __name__ == "__main__":
    main()
