"""What a training stage would read from a source: usable and refused rows, lengths in tokens, an example."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any

from prefine.data.lengths import MOST_LOOKED_AT, EvenSample, Lengths, lengths_of
from prefine.data.reading.quarantine import Quarantine
from prefine.data.reading.rows import Problem
from prefine.data.reading.source_names import source_names
from prefine.data.records.kinds import KINDS
from prefine.data.records.stream import read_records
from prefine.data.tokens.decoded import MarkedText, marked_texts
from prefine.data.tokens.fitting import fit, whole_row
from prefine.data.tokens.store import FitCounts
from prefine.data.tokens.template import ChatTemplate
from prefine.errors import TemplateError
from prefine.records import Preference, Record, Vote
from prefine.row_rules import AS_WRITTEN, RowRules
from prefine.text_form import AS_FOUND, TextForm

_PLACES_SHOWN = 3
_ROWS_BETWEEN_PROGRESS = 200
# From this share on, "the longer answer" predicts preferences about as well as a good reward model.
_NEARLY_DECIDES = 0.8
_FEWEST_PAIRS = 20
_ANSWERS = {"preferences": ("chosen", "rejected"), "votes": ("completion",), "demonstrations": ("answer",)}


@dataclass(frozen=True)
class SetAside:
    """Quarantined rows of one reason; `places` are the first of them, as file:line."""

    reason: str
    rows: int
    places: list[str]


@dataclass
class AnswerLengths:
    """Pairs without ties, by which answer has more characters."""

    chosen_longer: int = 0
    rejected_longer: int = 0
    equal: int = 0

    @property
    def pairs(self) -> int:
        """All of them."""
        return self.chosen_longer + self.rejected_longer + self.equal

    @property
    def length_decides(self) -> bool:
        """Whether length alone nearly decides: a model may then learn length instead of quality."""
        larger = max(self.chosen_longer, self.rejected_longer)
        return self.pairs >= _FEWEST_PAIRS and larger >= _NEARLY_DECIDES * self.pairs


@dataclass(frozen=True)
class TokenCounts:
    """Lengths in tokens, and the effect of the length limit.

    Attributes:
        looked_at: tokenized records: all, or an even sample of many.
        max_length: the limit, as data.max_length_tokens in a recipe.
        lengths: by part of a record; "total" is the prompt and longest answer, which the limit bounds.
        fit: the records at that limit.
        refused: records that the chat template refuses; `refusal` is its message for the first.
    """

    looked_at: int
    max_length: int
    lengths: dict[str, Lengths]
    fit: FitCounts
    refused: int = 0
    refusal: str | None = None


@dataclass(frozen=True)
class Inspection:
    """The result of an inspection. `tokens` and `example` are None without a tokenizer.

    Attributes:
        counts: of rows (see data/records/stream.py, ReadCounts).
        ties, thumbs_up: records, of preferences and of votes.
    """

    sources: list[str]
    kind: str
    counts: dict[str, Any]
    set_aside: list[SetAside]
    ties: int
    thumbs_up: int
    answer_lengths: AnswerLengths | None
    tokens: TokenCounts | None
    example: list[MarkedText] | None


class NotingQuarantine(Quarantine):
    """A quarantine that also records the places of the first rows of each reason."""

    def __init__(self, path: Path | None = None) -> None:
        super().__init__(path)
        self._places: dict[str, list[str]] = {}

    def add(self, file: str, line: int, problem: Problem, row: str | Mapping[str, Any]) -> str:
        """See Quarantine."""
        reason = super().add(file, line, problem, row)
        places = self._places.setdefault(reason, [])
        if len(places) < _PLACES_SHOWN:
            places.append(f"{file}:{line}")
        return reason

    def set_aside(self) -> list[SetAside]:
        """Quarantined rows, the most common reason first."""
        return [SetAside(reason, rows, self._places[reason]) for reason, rows in self.reasons.most_common()]


def inspect_sources(
    sources: Sequence[str],
    kind: str,
    *,
    template: ChatTemplate | None,
    max_length: int,
    quarantine: NotingQuarantine,
    split: str = "train",
    text: TextForm = AS_FOUND,
    rules: RowRules = AS_WRITTEN,
    most_tokenized: int = MOST_LOOKED_AT,
    progress: Callable[[int], None] = lambda rows: None,
) -> Inspection:
    """Read sources as a training stage would, in bounded memory.

    Args:
        sources: files, folders, dataset ids or sample:….
        kind: a name in KINDS.
        template: of the tokenizer to count with; None counts no tokens.
        max_length: most tokens of a prompt and an answer together.
        quarantine: receives invalid rows.
        split: of a Hugging Face dataset.
        text: delimiter and encoding of text files.
        rules: names of columns, and which pairs ranked answers give.
        most_tokenized: of more records than this, an even sample is tokenized.
        progress: called with the number of rows read so far.

    Raises:
        DataError: a source cannot be read, or has no usable row.
    """
    names = source_names(list(sources))
    stream = read_records(names, KINDS[kind], quarantine=quarantine, split=split, text=text, rules=rules)
    survey = _Survey(template, kind, max_length, EvenSample(most_tokenized))
    for number, record in enumerate(stream):
        survey.add(number, record)
        if number % _ROWS_BETWEEN_PROGRESS == 0:
            progress(stream.counts.rows_in)
    progress(stream.counts.rows_in)
    return Inspection(
        sources=list(sources),
        kind=kind,
        counts=stream.counts.as_dict(),
        set_aside=quarantine.set_aside(),
        ties=survey.ties,
        thumbs_up=survey.thumbs_up,
        answer_lengths=survey.answer_lengths if kind == "preferences" else None,
        tokens=survey.tokens() if template is not None else None,
        example=survey.example,
    )


@dataclass
class _Survey:
    """Counts of single records."""

    template: ChatTemplate | None
    kind: str
    max_length: int
    # For each sampled record: tokens of its prompt and answers and how it fits; None if the template refused it.
    looked_at: EvenSample[tuple[tuple[int, ...], FitCounts] | None]
    ties: int = 0
    thumbs_up: int = 0
    answer_lengths: AnswerLengths = field(default_factory=AnswerLengths)
    example: list[MarkedText] | None = None
    refusal: str | None = None

    def add(self, number: int, record: Record) -> None:
        if isinstance(record, Preference):
            self._compare(record)
        elif isinstance(record, Vote):
            self.thumbs_up += record.label
        if self.template is not None and self.looked_at.wants(number):
            self.looked_at.add(self._tokenized(self.template, record))

    def _compare(self, record: Preference) -> None:
        if record.tie:
            self.ties += 1
            return
        longer = len(record.chosen) - len(record.rejected)
        self.answer_lengths.chosen_longer += longer > 0
        self.answer_lengths.rejected_longer += longer < 0
        self.answer_lengths.equal += longer == 0

    def _tokenized(self, template: ChatTemplate, record: Record) -> tuple[tuple[int, ...], FitCounts] | None:
        try:
            whole = whole_row(template, record)
            counts = FitCounts()
            fitted = fit(template, record, self.max_length, counts, whole)
        except TemplateError as error:
            self.refusal = self.refusal or str(error)
            return None
        if self.example is None and fitted is not None:
            self.example = marked_texts(template, fitted)
        return (len(whole.tree.prompt), *map(len, whole.tree.answers)), counts

    def tokens(self) -> TokenCounts:
        seen = [each for each in self.looked_at.values if each is not None]
        columns = list(zip(*(lengths for lengths, _ in seen), strict=True)) if seen else []
        parts = dict(zip(("prompt", *_ANSWERS.get(self.kind, ())), columns, strict=False))
        if len(parts) > 1:
            parts["total"] = tuple(prompt + max(answers) for (prompt, *answers), _ in seen)
        return TokenCounts(
            looked_at=len(self.looked_at.values),
            max_length=self.max_length,
            lengths={name: lengths_of(values) for name, values in parts.items()},
            fit=replace(
                FitCounts(*(sum(column) for column in zip(*(astuple(counts) for _, counts in seen), strict=True))),
                longest_row_tokens=max((counts.longest_row_tokens for _, counts in seen), default=0),
            ),
            refused=len(self.looked_at.values) - len(seen),
            refusal=self.refusal,
        )
