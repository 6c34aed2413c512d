"""What `prefine annotate status` shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefine.annotation.project import ProjectReader
    from prefine.annotation.records import HumanJudgement, ProjectProgress


def progress_lines(progress: ProjectProgress) -> Iterator[str]:
    """How far the project and each annotator are, in lines."""
    from prefine.formatting import duration, plural

    yield (
        f"{plural(progress.items, 'item')}, {progress.complete} of them complete; "
        f"{progress.votes} votes, {progress.missing} missing"
    )
    for each in progress.annotators:
        details = [
            *([f"{plural(each.skipped, 'skip')}"] if each.skipped else []),
            *([f"{plural(each.repeats, 'repeat')}"] if each.repeats else []),
            *([f"median {duration(each.seconds)}"] if each.votes else []),
            *(["paused"] if each.paused else []),
        ]
        yield f"  {each.name}: {plural(each.votes, 'vote')}{_in_brackets(details)}"


def _in_brackets(details: Sequence[str]) -> str:
    return f" ({', '.join(details)})" if details else ""


def findings_of(project: ProjectReader, judgements: Sequence[HumanJudgement]) -> Iterator[str]:
    """What the votes show, in sentences."""
    from prefine.annotation.agreement import agreement, agreement_by_criterion
    from prefine.annotation.ranking import ranking
    from prefine.annotation.settling import settling
    from prefine.annotation.statistics import (
        characters_of,
        consistency,
        paces,
        people_win_rate,
        side_bias,
        standings,
    )

    if not judgements:
        return
    models = sorted({model for each in judgements for model in each.models})
    if len(models) == 2 and any(len(each.answers) == 2 for each in judgements):
        first, second = models
        yield people_win_rate(judgements, first, second).sentence
        yield settling(judgements, first, second).sentence
    elif len(models) > 2:
        yield from ranking(judgements).sentences
    yield agreement(judgements).sentence
    yield from (f"{name}: {found.sentence}" for name, found in agreement_by_criterion(judgements).items())
    yield from (each.sentence for each in side_bias(judgements))
    yield from (each.sentence for each in consistency(judgements))
    yield from (each.sentence for each in standings(judgements))
    yield from (each.sentence for each in paces(judgements, characters_of(project.items())))
