"""Held-out records with a reward model's scores, the input of all readiness measures."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from prefine.models.scoring.scorer import Question, RewardModel, Score
from prefine.records import Conversation, Preference, Vote

# Columns with the group of a pair, RewardBench's first.
_GROUP_COLUMNS = ("subset", "category")


@dataclass(frozen=True)
class ScoredAnswer:
    """An answer with its prompt and score."""

    prompt: Conversation
    answer: str
    score: Score
    tools: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class JudgedPair:
    """Two answers of which people preferred the first.

    Attributes:
        id: of the record; a number if it has none.
        group: its subset or category; "" if it has none.
        data_margin: how much better the chosen answer is by the data's margin, else by its scores, if any.
        margin: chosen minus rejected score; above 0 the model agrees with people.
        disagreement: standard deviation of the heads' margins; 0 with one head.
        trained_on: whether the model was trained on this pair.
    """

    id: str
    group: str
    chosen: ScoredAnswer
    rejected: ScoredAnswer
    data_margin: float | None
    margin: float
    disagreement: float
    trained_on: bool = False

    @property
    def agrees(self) -> bool:
        """Whether the model prefers the answer that people prefer; false for equal scores."""
        return self.margin > 0

    @property
    def longer(self) -> int:
        """1 if the chosen answer has more tokens, -1 if fewer, 0 if as many."""
        chosen, rejected = self.chosen.score.tokens, self.rejected.score.tokens
        return (chosen > rejected) - (chosen < rejected)


def judge(reward: RewardModel, records: Iterable[Preference | Vote]) -> Iterator[JudgedPair | None]:
    """The records as pairs with scores, lazily; None for one with an answer too long for the model. Ties are left out.

    Votes are paired in order: the next thumb up with the next thumb down, whatever their prompts, so that pairs are
    independent; remaining votes are left out.
    """
    waiting: list[Preference | tuple[Vote, Vote]] = []

    def questions() -> Iterator[Question]:
        ups: list[Vote] = []
        downs: list[Vote] = []
        for record in records:
            if isinstance(record, Vote):
                (ups if record.label else downs).append(record)
                if ups and downs:
                    both = (ups.pop(0), downs.pop(0))
                    waiting.append(both)
                    yield from (Question(vote.prompt, (vote.completion,), vote.tools) for vote in both)
            elif not record.tie:
                waiting.append(record)
                yield Question(record.prompt, (record.chosen, record.rejected), record.tools)

    scores = reward.score(questions())
    for number, first in enumerate(scores, start=1):
        record = waiting.pop(0)
        if isinstance(record, Preference):
            both = zip((record.chosen, record.rejected), first or (), strict=False)
            sides = None if first is None else [ScoredAnswer(record.prompt, *each, record.tools) for each in both]
            source: Preference | Vote = record
        else:
            second = next(scores)
            votes = zip(record, (first, second), strict=True)
            found = [
                ScoredAnswer(vote.prompt, vote.completion, own[0], vote.tools) for vote, own in votes if own is not None
            ]
            sides = found if len(found) == 2 else None
            source = record[0]
        yield None if sides is None else _pair(source, sides[0], sides[1], number)


def _pair(record: Preference | Vote, chosen: ScoredAnswer, rejected: ScoredAnswer, number: int) -> JudgedPair:
    margins = [c - r for c, r in zip(chosen.score.heads, rejected.score.heads, strict=True)]
    return JudgedPair(
        id=record.id or f"pair {number}",
        group=_group_of(record.extra),
        chosen=chosen,
        rejected=rejected,
        data_margin=_data_margin(record),
        margin=statistics.fmean(margins),
        disagreement=statistics.pstdev(margins),
    )


def _group_of(extra: dict[str, Any]) -> str:
    return next((str(extra[name]) for name in _GROUP_COLUMNS if isinstance(extra.get(name), str | int)), "")


def as_trained_on(pair: JudgedPair, head: int | None) -> JudgedPair:
    """A training pair; `head` skipped it in training, so only its judgement is unbiased."""
    if head is None:
        return replace(pair, trained_on=True)
    margin = pair.chosen.score.heads[head] - pair.rejected.score.heads[head]
    return replace(pair, trained_on=True, margin=margin, disagreement=0.0)


def _data_margin(record: Preference | Vote) -> float | None:
    if not isinstance(record, Preference):
        return None
    return record.score_difference if record.margin is None else record.margin
