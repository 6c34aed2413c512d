"""All statistics of a project as sentences, in the order in which they matter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prefine.annotation.agreement import (
    agreement,
    agreement_by_annotator,
    agreement_by_criterion,
    agreement_of_pairs,
)
from prefine.annotation.ranking import ranking
from prefine.annotation.records import Item, Judgement
from prefine.annotation.settling import settling
from prefine.annotation.statistics import (
    characters_of,
    consistency,
    models_of,
    paces,
    people_win_rate,
    side_bias,
    standings,
)

_MOST_PAIRS = 6  # of annotators; more are no longer read one by one


def summary(judgements: Sequence[Judgement], items: Iterable[Item]) -> list[str]:
    """What the votes show so far, a sentence a figure; one sentence if there are no votes.

    The win rate of two models is the first one's, in the order of the import; more models are ranked. Annotators are
    named with their agreement and their consistency, else only if something is shown of them.
    """
    if not judgements:
        return ["No votes yet."]
    criteria = sorted({each.criterion for each in judgements if each.criterion is not None})
    several = len({each.annotator for each in judgements}) > 1
    return [
        *_models(judgements, criteria),
        *([agreement(judgements).sentence] if several else []),
        *(f"{name}: {each.sentence}" for name, each in agreement_by_criterion(judgements).items() if several),
        *(each.sentence for each in agreement_by_annotator(judgements).values() if several and each.value is not None),
        *_pairs(judgements, criteria),
        *_annotators(judgements, items),
    ]


def _pairs(judgements: Sequence[Judgement], criteria: Sequence[str]) -> list[str]:
    """κ of each two annotators, of two also by criterion."""
    pairs = agreement_of_pairs(judgements)
    if len(pairs) > _MOST_PAIRS:
        return []
    more = {name: agreement_of_pairs(judgements, name) for name in criteria if len(pairs) == 1}
    return [
        *(each.sentence for each in pairs.values()),
        *(f"{name}: {each.sentence}" for name, found in more.items() for each in found.values()),
    ]


def _models(judgements: Sequence[Judgement], criteria: Sequence[str]) -> list[str]:
    """Which model people prefer."""
    pairs = [each for each in judgements if len(each.answers) == 2]
    models = list(dict.fromkeys(models_of(pairs).values()))
    if len(models) > 2:
        return ranking(pairs).sentences
    if len(models) < 2:
        return []
    candidate, baseline = models
    whole, *others = [people_win_rate(pairs, candidate, baseline, each).sentence for each in (None, *criteria)]
    return [
        f"The candidate is {candidate}, the baseline {baseline}. {whole}",
        *others,
        settling(pairs, candidate, baseline).sentence,
    ]


def _annotators(judgements: Sequence[Judgement], items: Iterable[Item]) -> list[str]:
    """What is known of how the annotators vote."""
    everyone, *sides = side_bias(judgements)
    together, *repeated = consistency(judgements)
    return [
        *([everyone.sentence] if everyone.decided else []),
        *(each.sentence for each in sides if each.shown),
        *([together.sentence] if together.repeats else []),
        *(each.sentence for each in repeated if each.repeats and len(repeated) > 1),
        *(each.sentence for each in standings(judgements) if each.outlier),
        *(each.sentence for each in paces(judgements, characters_of(items)) if each.hasty),
    ]
