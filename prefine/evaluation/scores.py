"""Rows in, rows with scores out: what `prefine score` does, in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from prefine.data.dataset import read_records
from prefine.data.kinds import KINDS, kind_of_sources
from prefine.data.prepare import source_names
from prefine.data.quarantine import Quarantine
from prefine.data.rows import Problem
from prefine.models.scoring import Question, RewardModel, Score
from prefine.records import Completion, Preference

_TOO_LONG = Problem("completion", "leaves its prompt no room within the model's length")


class ScoredRows:
    """An iterator over the rows of `sources` with their scores, in order and lazily.

    Files of pairs give pairs; all others (votes, demonstrations, completions) single answers. Rows that follow each
    other and share a prompt are scored together, with the prompt computed once.

    Args:
        reward: gives the scores.
        sources: see prefine.data.reading.
        quarantine: takes rows that are not valid, and those with an answer too long for the model.

    Raises:
        DataError: a source cannot be found or read, or none of its rows holds a prompt with an answer.
    """

    def __init__(
        self, reward: RewardModel, sources: Sequence[str], quarantine: Quarantine, split: str = "train"
    ) -> None:
        self.scored = 0
        self._reward = reward
        self._quarantine = quarantine
        names = source_names(list(sources))
        pairs = KINDS[kind_of_sources(names, split=split)] is Preference
        self._name = ", ".join(sources)
        self._stream: Iterator[Preference | Completion] = read_records(
            names, Preference if pairs else Completion, quarantine=quarantine, split=split, deduplicate=False
        )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        waiting: deque[list[Preference | Completion]] = deque()

        def questions() -> Iterator[Question]:
            for run in _sharing_a_prompt(self._stream):
                waiting.append(run)
                yield Question(run[0].prompt, [answer for record in run for answer in _answers(record)])

        for scores in self._reward.score(questions()):
            run = waiting.popleft()
            if scores is not None:
                yield from self._rows(run, scores)
            elif len(run) == 1:
                self._refuse(run[0])
            else:  # one answer is too long, and its neighbours are not to suffer for it
                for record in run:
                    (alone,) = self._reward.score([Question(record.prompt, _answers(record))])
                    if alone is None:
                        self._refuse(record)
                    else:
                        yield from self._rows([record], alone)

    def summary(self) -> list[str]:
        """What became of the rows, for people."""
        told = [f"{self.scored:,} rows scored by {self._reward.name}"]
        if self._reward.scale is None:
            told.append("The scores are as the model gives them: nobody measured what an average answer gets.")
        if self._quarantine.total:
            reasons = "; ".join(f"{reason} ({count})" for reason, count in self._quarantine.reasons.most_common(3))
            where = self._quarantine.path or "not written: name a file with --quarantine"
            told.append(f"{self._quarantine.total:,} rows could not be scored: {reasons} ({where})")
        return told

    def _rows(self, run: list[Preference | Completion], scores: list[Score]) -> Iterator[dict[str, Any]]:
        left = iter(scores)
        for record in run:
            self.scored += 1
            yield _row(record, [next(left) for _ in _answers(record)])

    def _refuse(self, record: Preference | Completion) -> None:
        self._quarantine.add(self._name, 0, _TOO_LONG, record.model_dump(mode="json"))


_MOST_TOGETHER = 32


def _sharing_a_prompt(records: Iterator[Preference | Completion]) -> Iterator[list[Preference | Completion]]:
    """Neighbours with one prompt, at most _MOST_TOGETHER."""
    run: list[Preference | Completion] = []
    for record in records:
        if run and (record.prompt != run[0].prompt or len(run) == _MOST_TOGETHER):
            yield run
            run = []
        run.append(record)
    if run:
        yield run


def _answers(record: Preference | Completion) -> tuple[str, ...]:
    return (record.chosen, record.rejected) if isinstance(record, Preference) else (record.completion,)


def _row(record: Preference | Completion, scores: Sequence[Score]) -> dict[str, Any]:
    row = {**record.extra, **record.model_dump(mode="json", exclude={"extra"}, exclude_none=True)}
    names = ("chosen_score", "rejected_score") if isinstance(record, Preference) else ("score",)
    for name, score in zip(names, scores, strict=True):
        row[name] = score.score
        if len(score.heads) > 1:
            row[f"{name}_disagreement"] = score.disagreement
    return row
