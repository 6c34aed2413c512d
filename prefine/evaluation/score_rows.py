"""`prefine score`: rows in, rows with scores out, in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import Any

from pydantic import NonNegativeInt

from prefine.data.reading.quarantine import Quarantine
from prefine.data.reading.rows import RowError
from prefine.data.reading.source_names import source_names
from prefine.data.records.column_names import with_known_names
from prefine.data.records.convert import records_of
from prefine.data.records.kinds import KINDS, kind_of_sources
from prefine.data.records.stream import RecordStream, read_records
from prefine.data.row_blocks import BlockRows, BlockState
from prefine.data.row_columns import said_of, saying, with_own
from prefine.errors import DataError
from prefine.formatting import plural
from prefine.models.scoring.scorer import Question, RewardModel, Score
from prefine.records import Completion, Preference
from prefine.row_rules import AS_WRITTEN, RowRules
from prefine.runs.atomic import JSON
from prefine.text_form import AS_FOUND, TextForm

_UNLEARNED = RowRules(learned=False)
_MOST_TOGETHER = 32
# Records of a block, which a resume computes again.
_BLOCK = 1024


@dataclass(frozen=True)
class _Row:
    """A record, its row, and the row's place."""

    record: Preference | Completion
    row: dict[str, Any]
    file: str
    line: int

    @property
    def answers(self) -> tuple[str, ...]:
        match self.record:
            case Preference():
                return (self.record.chosen, self.record.rejected)
            case Completion():
                return (self.record.completion,)


class _ScoredState(BlockState):
    scored: NonNegativeInt


class ScoredRows(BlockRows[Preference | Completion]):
    """The rows of `sources` with their scores, in order and lazily.

    Files of pairs give pairs; all others (votes, chats, prompts with a completion) single answers. Consecutive rows
    with one prompt are scored together, with the prompt computed once.

    Args:
        sources: see prefine.data.reading.sources.
        quarantine: receives invalid rows, and those that the model cannot score.
        split: of a Hugging Face dataset.
        text: delimiter and encoding of text files.
        rules: names of columns.

    Raises:
        DataError: a source cannot be found or read, or none of its rows has a prompt with an answer.
    """

    state_type = _ScoredState

    def __init__(
        self,
        sources: Sequence[str],
        quarantine: Quarantine,
        split: str = "train",
        text: TextForm = AS_FOUND,
        rules: RowRules = AS_WRITTEN,
    ) -> None:
        names = source_names(list(sources))
        rules = replace(rules, learned=False)  # rows that are not to be learned are scored, too
        found = KINDS[kind_of_sources(names, split=split, text=text, rules=rules)]
        kind = Preference if found is Preference else Completion
        stream: RecordStream[Preference | Completion] = read_records(
            names, kind, quarantine=quarantine, split=split, deduplicate=False, text=text, rules=rules
        )
        super().__init__(stream, quarantine)
        self.scored = 0

    def by(self, reward: RewardModel) -> Iterator[dict[str, Any]]:
        """The rows as JSON objects with scores of `reward`."""
        return chain.from_iterable(self.blocks(reward))

    def blocks(self, reward: RewardModel) -> Iterator[Iterator[dict[str, Any]]]:
        """The same rows in blocks; each must be consumed before the next, and `state` is valid between two."""
        while (first := next(self._records, None)) is not None:
            yield self._block(first, reward)

    def state(self) -> dict[str, JSON]:
        """See BlockRows."""
        return {**super().state(), "scored": self.scored}

    def go_to(self, state: Mapping[str, Any]) -> None:
        """See BlockRows."""
        super().go_to(state)
        self.scored = state["scored"]

    def summary(self, reward: RewardModel) -> list[str]:
        """Lines for the user on the rows."""
        told = [f"{plural(self.scored, 'row')} scored by {reward.name}"]
        if reward.scale is None:
            told.append("The scores are not centred, as the model has no recorded mean score.")
        return told + self._about_rows("scored")

    def _block(self, first: Preference | Completion, reward: RewardModel) -> Iterator[dict[str, Any]]:
        waiting: deque[list[_Row]] = deque()
        failed: list[DataError] = []

        def records() -> Iterator[Preference | Completion]:
            yield first
            try:
                yield from islice(self._records, _BLOCK - 1)
            except DataError as error:  # earlier rows are scored first
                failed.append(error)

        def questions() -> Iterator[Question]:
            for run in self._sharing_a_prompt(records()):
                waiting.append(run)
                asked = run[0].record
                yield Question(asked.prompt, [answer for row in run for answer in row.answers], asked.tools)

        for scores in reward.score(questions()):
            run = waiting.popleft()
            if scores is not None:
                yield from self._told(run, scores)
                continue
            for row in run:  # one answer is too long, which must not affect its neighbours
                question = Question(row.record.prompt, row.answers, row.record.tools)
                (alone,) = reward.score([question])
                if alone is None:
                    self._quarantine.add(row.file, row.line, reward.problem(question), row.row)
                else:
                    yield from self._told([row], alone)
        if failed:
            raise failed[0]

    def _sharing_a_prompt(self, records: Iterator[Preference | Completion]) -> Iterator[list[_Row]]:
        """Consecutive rows with one prompt, at most _MOST_TOGETHER."""
        run: list[_Row] = []
        for record in records:
            if run and (not _share_a_prompt(record, run[0].record) or len(run) == _MOST_TOGETHER):
                yield run
                run = []
            run.append(_Row(record, self._records.row, *self._records.place))
        if run:
            yield run

    def _told(self, run: list[_Row], scores: list[Score]) -> Iterator[dict[str, Any]]:
        left = iter(scores)
        for row in run:
            self.scored += 1
            yield self._with_scores(row, [next(left) for _ in row.answers])

    def _with_scores(self, row: _Row, scores: Sequence[Score]) -> dict[str, Any]:
        # Not chosen_score and rejected_score, which as input are human scores and may become margins.
        pair = isinstance(row.record, Preference)
        names = ("score_of_chosen", "score_of_rejected") if pair else ("score",)
        own: dict[str, Any] = {}
        for name, score in zip(names, scores, strict=True):
            own[name] = score.score
            if len(score.heads) > 1:
                own[f"{name}_disagreement"] = score.disagreement
        if not isinstance(row.record, Preference):
            return with_own(row.row, own, self._renamed)
        used = {**said_of(row.record), "chosen": row.record.chosen, "rejected": row.record.rejected}
        return saying(row.row, own, used, partial(_says, record=row.record), self._renamed)


def _says(row: dict[str, Any], record: Preference) -> bool:
    """Whether a row, read again, gives the pair that was scored."""
    try:
        found = records_of(with_known_names(row), Preference, _UNLEARNED)
    except RowError:
        return False
    said = [(each.prompt, each.tools, each.chosen, each.rejected) for each in found]
    return said == [(record.prompt, record.tools, record.chosen, record.rejected)]


def _share_a_prompt(one: Preference | Completion, other: Preference | Completion) -> bool:
    return one.prompt == other.prompt and one.tools == other.tools
