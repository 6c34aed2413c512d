"""What is known of a user's data, counted over all files, as far as a choice depends on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prefine.data.audit.facts import DataFacts
from prefine.data.audit.unread import columns_sentence, kinds_sentence, naming
from prefine.text_form import AS_FOUND, TextForm


@dataclass(frozen=True)
class ReadingOptions:
    """How files are read, as in a recipe's data section.

    Attributes:
        columns: prefine's name -> the file's column; None ignores the column of that name.
        split: of a Hugging Face dataset.
        text: delimiter and encoding of text files.
    """

    columns: Mapping[str, str | None] = field(default_factory=dict)
    split: str = "train"
    text: TextForm = AS_FOUND


@dataclass(frozen=True)
class Signal:
    """What judgements of one kind, pairs or votes, say.

    Attributes:
        duplicates: judgements that repeat an earlier one.
        contradictions: judgements that another one contradicts, without those that repeat an earlier one.
        agreement: share of two people's votes on the same answers that agree; None with too few such votes.
        agreement_at_most: the upper end of its 95 % interval.
        shallow_accuracy: of single words as a classifier of better answers, from 0 to 1; None with too few rows.
        length_bias: share of pairs whose better answer is the longer one; of votes, of pairs of one up and one down.
    """

    duplicates: int = 0
    contradictions: int = 0
    agreement: float | None = None
    agreement_at_most: float | None = None
    shallow_accuracy: float | None = None
    length_bias: float | None = None


@dataclass(frozen=True)
class Situation:
    """Counts of records by kind, the signal in them, and what the user wants.

    Attributes:
        pairs: preference pairs without ties.
        ties: undecided pairs.
        votes, thumbs_up: votes on single answers, and those that are up.
        demonstrations: prompts with an answer to imitate.
        prompts: prompts without an answer.
        reward: a function or model that scores any answer, as in reward.name; None without one.
        signals: what the judgements say, of preferences and of votes.
        longest_tokens: of the longest record of each kind, estimated.
        longest_prompts: of the longest prompt of each kind, likewise.
        sources: the files of each kind.
        read_in_part: files of which only the first records were read, with their number. All figures are of what was
            read.
        not_read: what the files have that is not read, in sentences with what to do.
        options: how the files are read.
        columns: of these options, the columns that each file has.
    """

    pairs: int = 0
    ties: int = 0
    votes: int = 0
    thumbs_up: int = 0
    demonstrations: int = 0
    prompts: int = 0
    reward: str | None = None
    signals: Mapping[str, Signal] = field(default_factory=dict)
    longest_tokens: Mapping[str, int] = field(default_factory=dict)
    longest_prompts: Mapping[str, int] = field(default_factory=dict)
    sources: dict[str, list[str]] = field(default_factory=dict)
    read_in_part: Mapping[str, int] = field(default_factory=dict)
    not_read: tuple[str, ...] = ()
    options: ReadingOptions = ReadingOptions()
    columns: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)

    def of(self, kind: str) -> list[str]:
        """The files of a kind of records."""
        return self.sources.get(kind, [])

    def at_least(self, kind: str) -> str:
        """ "at least " before a count of records of a kind of which there may be more than were read; else empty."""
        return "at least " if any(source in self.read_in_part for source in self.of(kind)) else ""


def situation_of(
    found: Sequence[tuple[str, DataFacts]],
    reward: str | None = None,
    *,
    options: ReadingOptions | None = None,
    columns: Mapping[str, Mapping[str, str | None]] | None = None,
    together: Mapping[str, DataFacts] | None = None,
) -> Situation:
    """The situation in several files.

    Args:
        found: each source with its facts.
        reward, options, columns: see Situation.
        together: facts of all files of a kind, read together, by kind; of other kinds each file counts by itself.
    """
    whole = together or {}

    def total(kind: str, name: str) -> int:
        return sum(int(getattr(facts, name) or 0) for _, facts in found if facts.kind == kind)

    def longest(kind: str, name: str) -> int:
        return max(int(getattr(facts, name)) for _, facts in found if facts.kind == kind)

    sources: dict[str, list[str]] = {}
    for source, facts in found:
        sources.setdefault(facts.kind, []).append(source)
    ties = total("preferences", "ties")
    return Situation(
        pairs=total("preferences", "records") - ties,
        ties=ties,
        votes=total("votes", "records"),
        thumbs_up=total("votes", "thumbs_up"),
        demonstrations=total("demonstrations", "records"),
        prompts=total("prompts", "records"),
        reward=reward,
        signals={
            kind: _signal([whole[kind]] if kind in whole else [facts for _, facts in found if facts.kind == kind])
            for kind in sources
        },
        longest_tokens={kind: longest(kind, "longest_tokens") for kind in sources},
        longest_prompts={kind: longest(kind, "longest_prompt_tokens") for kind in sources},
        sources=sources,
        read_in_part={source: facts.records for source, facts in found if not facts.complete},
        not_read=tuple(sentence for source, facts in found for sentence in _not_read(source, facts)),
        options=options or ReadingOptions(),
        columns=columns or {},
    )


def _signal(files: Sequence[DataFacts]) -> Signal:
    """Of files of one kind; of shares the one that speaks most against the judgements."""
    agreements = [
        (facts.agreement_at_most, facts.agreement)
        for facts in files
        if facts.agreement is not None and facts.agreement_at_most is not None
    ]
    at_most, agreement = min(agreements, default=(None, None))
    accuracies = [facts.shallow_accuracy for facts in files if facts.shallow_accuracy is not None]
    biases = [facts.length_bias for facts in files if facts.length_bias is not None]
    return Signal(
        duplicates=sum(facts.duplicates for facts in files),
        contradictions=sum(facts.contradictions for facts in files),
        agreement=agreement,
        agreement_at_most=at_most,
        shallow_accuracy=max(accuracies, default=None),
        length_bias=max(biases, key=lambda share: abs(share - 0.5), default=None),
    )


def _not_read(source: str, facts: DataFacts) -> Iterator[str]:
    if sentence := columns_sentence(facts.answers_unread, facts.votes_unread, facts.votes_down_unread, facts.kind):
        remedy = naming(facts.answers_unread, facts.votes_unread, facts.columns_proposed, facts.kind)
        yield f"{source}: {sentence} {remedy}"
    if sentence := kinds_sentence(facts.rows_by_kind, facts.kind):
        yield f"{source}: {sentence} Write each kind into a file of its own, and name all of them with --data."
