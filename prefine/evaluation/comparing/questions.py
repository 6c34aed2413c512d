"""The prompts of a comparison: from files, or the rows that a run held out."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefine.data.prepare import open_stores
from prefine.data.reading.quarantine import Quarantine
from prefine.data.reading.rows import RowError
from prefine.data.reading.source_names import source_names
from prefine.data.records.column_names import with_known_names
from prefine.data.records.convert import records_of
from prefine.data.records.stream import read_records
from prefine.data.records.unread_columns import kind_in
from prefine.errors import DataError
from prefine.intervals import evenly_chosen
from prefine.json_reading import JsonError, read_json_object
from prefine.records import Completion, Conversation, Demonstration, Preference, Prompt
from prefine.runs.directory import RunDirectory

_TIE = "a tie, which has no better answer"
_REPEATED = "repeats an earlier prompt, which is asked once"


@dataclass(frozen=True)
class EvaluationPrompt:
    """A prompt that both models answer.

    Attributes:
        reference: an answer by people, "" if there is none.
    """

    id: str
    prompt: Conversation
    tools: tuple[dict[str, Any], ...] = ()
    category: str = ""
    reference: str = ""

    @property
    def turns(self) -> list[dict[str, Any]]:
        """The turns as JSON."""
        return [turn.model_dump(mode="json") for turn in self.prompt]


@dataclass
class Questions:
    """What a comparison asks.

    Attributes:
        source: where the prompts are from, for people.
        prompts: without repetitions.
        left_out: rows that are not among the prompts, by reason.
        pairs, demonstrations: held-out rows that are not answered but measured.
        pairs_left_out, demonstrations_left_out: rows that are not among them, by reason.
    """

    source: str
    prompts: list[EvaluationPrompt]
    left_out: Counter[str] = field(default_factory=Counter)
    pairs: list[Preference] = field(default_factory=list)
    demonstrations: list[Demonstration] = field(default_factory=list)
    pairs_left_out: Counter[str] = field(default_factory=Counter)
    demonstrations_left_out: Counter[str] = field(default_factory=Counter)

    @property
    def all_left_out(self) -> Counter[str]:
        """Rows of all sources that are not used, by what they were for and the reason."""
        found = Counter(self.left_out)
        for what, reasons in (("pairs", self.pairs_left_out), ("demonstrations", self.demonstrations_left_out)):
            found.update({f"{what}: {reason}": count for reason, count in reasons.items()})
        return found

    @property
    def digest(self) -> str:
        """Hash of the prompts, in order."""
        return digest_of([(each.id, each.turns, each.tools) for each in self.prompts])


def digest_of(value: Any) -> str:
    """SHA-256 of a value's JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def from_files(sources: Sequence[str], limit: int | None = None) -> Questions:
    """The prompts of files, in any layout of docs/data.md; answers in them are references.

    Args:
        limit: take at most so many prompts, evenly spaced.

    Raises:
        DataError: a source cannot be read, or has no prompt.
    """
    with Quarantine(None) as quarantine:
        stream = read_records(source_names(list(sources)), Prompt, quarantine=quarantine, deduplicate=False)
        found = [_of_row(record, stream.row, number) for number, record in enumerate(stream, start=1)]
    distinct = _distinct(found)
    if not distinct:
        raise DataError(f"{', '.join(sources)} has no prompt", "Give rows with a prompt.", field="prompts")
    left_out = stream.counts.unused + _repeated(found, distinct)
    return Questions(", ".join(sources), _limited(distinct, limit), left_out)


def from_run(run: Path, limit: int | None = None) -> Questions | None:
    """The rows that a run held out of its training; None if the folder is no run, or held out none.

    Raises:
        DataError: the run's data are damaged.
    """
    if not is_run(run) or not RunDirectory(run).data.is_dir():
        return None
    store = open_stores(RunDirectory(run).data)[1]
    records = [_record_of(store.record_json(row)) for row in range(len(store))]
    found = prompts_of(records)
    distinct = _distinct(found)
    if not distinct:
        return None
    pairs, ties = _without_ties(each for each in records if isinstance(each, Preference))
    return Questions(
        f"held-out rows of {run}",
        _limited(distinct, limit),
        _repeated(found, distinct),
        pairs=pairs,
        demonstrations=[each for each in records if isinstance(each, Demonstration)],
        pairs_left_out=ties,
    )


def is_run(path: Path) -> bool:
    """Whether a folder is a run."""
    try:
        return {"stage", "recipe"} <= read_json_object(path / "manifest.json").keys()
    except (OSError, JsonError):
        return False


def read_pairs(sources: Sequence[str]) -> tuple[list[Preference], Counter[str]]:
    """The preference pairs of files; and rows that are not among them, such as ties, by reason.

    Raises:
        DataError: a source cannot be read, or has no pair.
    """
    with Quarantine(None) as quarantine:
        stream = read_records(source_names(list(sources)), Preference, quarantine=quarantine)
        found, ties = _without_ties(stream)
    if not found:
        raise DataError(f"{', '.join(sources)} has ties only", "Give pairs with a better answer.", field="pairs")
    return found, stream.counts.unused + ties


def read_demonstrations(sources: Sequence[str]) -> tuple[list[Demonstration], Counter[str]]:
    """The demonstrations of files; and rows that are not among them by reason.

    Raises:
        DataError: a source cannot be read, or has no demonstration.
    """
    with Quarantine(None) as quarantine:
        stream = read_records(source_names(list(sources)), Demonstration, quarantine=quarantine)
        found = list(stream)
    return found, stream.counts.unused


def _without_ties(pairs: Iterable[Preference]) -> tuple[list[Preference], Counter[str]]:
    """The pairs that say which answer is better, and how many do not."""
    every = list(pairs)
    found = [pair for pair in every if not pair.tie]
    return found, +Counter({_TIE: len(every) - len(found)})


def prompts_of(records: Iterable[Preference | Demonstration | Completion | Prompt]) -> list[EvaluationPrompt]:
    """The prompts of records, in order, repetitions included."""
    return [_of_record(record, number) for number, record in enumerate(records, start=1)]


def prompt_of_json(text: str) -> EvaluationPrompt:
    """The prompt of a stored record."""
    return _of_record(_record_of(text), 0)


def prompt_digest(prompt: EvaluationPrompt) -> str:
    """The same for equal prompts: a hash of turns and tools."""
    return digest_of([prompt.turns, prompt.tools])


def _record_of(text: str) -> Preference | Demonstration | Completion | Prompt:
    """A stored record, whose kind its fields show; a vote counts as an answer without its label."""
    fields = json.loads(text)
    fields.pop("label", None)
    if "messages" in fields:
        return Demonstration.model_validate_json(json.dumps(fields))
    kind = Preference if "chosen" in fields else Completion if "completion" in fields else Prompt
    return kind.model_validate_json(json.dumps(fields))


def _of_record(record: Preference | Demonstration | Completion | Prompt, number: int) -> EvaluationPrompt:
    name = record.id or str(number)
    category = _text(record.extra.get("category"))
    if isinstance(record, Demonstration):
        last = record.learned_turns[-1]
        reference = record.messages[last].content
        return EvaluationPrompt(name, record.messages[:last], record.tools, category, reference)
    reference = record.chosen if isinstance(record, Preference) and not record.tie else ""
    reference = reference or _text(record.extra.get("reference"))
    return EvaluationPrompt(name, record.prompt, record.tools, category, reference)


def _of_row(record: Prompt, row: Mapping[str, Any], number: int) -> EvaluationPrompt:
    reference = _text(row.get("reference")) or _answer_in(record, row)
    return EvaluationPrompt(
        record.id or str(number), record.prompt, record.tools, _text(row.get("category")), reference
    )


def _answer_in(record: Prompt, row: Mapping[str, Any]) -> str:
    """The good answer that a row has besides its prompt: a demonstration's, or a pair's chosen one."""
    named = with_known_names(dict(row))
    kind = kind_in(named)
    try:
        if kind is Demonstration:
            answers = [(each.prompt, each.completion) for each in records_of(named, Completion)]
        elif kind is Preference:
            answers = [(each.prompt, each.chosen) for each in records_of(named, Preference) if not each.tie]
        else:
            return ""
    except RowError:
        return ""
    return next((answer for prompt, answer in answers if prompt == record.prompt), "")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _distinct(prompts: Iterable[EvaluationPrompt]) -> list[EvaluationPrompt]:
    """The prompts without repetitions, each with an id of its own."""
    first: dict[str, EvaluationPrompt] = {}
    for each in prompts:
        first.setdefault(prompt_digest(each), each)
    return list(_with_own_ids(first.values()))


def _repeated(found: Sequence[EvaluationPrompt], distinct: Sequence[EvaluationPrompt]) -> Counter[str]:
    """How many prompts are there again: each is asked once."""
    return +Counter({_REPEATED: len(found) - len(distinct)})


def _with_own_ids(prompts: Iterable[EvaluationPrompt]) -> Iterator[EvaluationPrompt]:
    seen: set[str] = set()
    for each in prompts:
        name, number = each.id, 2
        while name in seen:
            name, number = f"{each.id} ({number})", number + 1
        seen.add(name)
        yield EvaluationPrompt(name, each.prompt, each.tools, each.category, each.reference)


def _limited(prompts: list[EvaluationPrompt], limit: int | None) -> list[EvaluationPrompt]:
    return prompts if limit is None else [prompts[place] for place in evenly_chosen(len(prompts), limit)]
