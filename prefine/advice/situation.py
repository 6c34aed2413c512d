"""What is known of a user's data, counted over all files, as far as a choice depends on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefine.data.audit.facts import DataFacts


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
        contradictions: items that were judged in both directions.
        agreement: share of two people's votes on the same answers that agree; None where nobody voted twice.
        shallow_accuracy: of single words as a classifier of better answers, from 0 to 1; None with too few rows.
        length_bias: share of pairs whose better answer is the longer one.
        longest_tokens: of the longest record, estimated.
        sources: the files of each kind.
        read_in_part: files of which only the first records were read, with their number. All figures are of what was
            read.
    """

    pairs: int = 0
    ties: int = 0
    votes: int = 0
    thumbs_up: int = 0
    demonstrations: int = 0
    prompts: int = 0
    reward: str | None = None
    contradictions: int = 0
    agreement: float | None = None
    shallow_accuracy: float | None = None
    length_bias: float | None = None
    longest_tokens: int = 0
    sources: dict[str, list[str]] = field(default_factory=dict)
    read_in_part: Mapping[str, int] = field(default_factory=dict)

    def of(self, kind: str) -> list[str]:
        """The files of a kind of records."""
        return self.sources.get(kind, [])

    def at_least(self, kind: str) -> str:
        """ "at least " before a count of records of a kind of which there may be more than were read; else empty."""
        return "at least " if any(source in self.read_in_part for source in self.of(kind)) else ""


def situation_of(found: Sequence[tuple[str, DataFacts]], reward: str | None = None) -> Situation:
    """The situation in several files.

    Args:
        found: each source with its facts.
        reward: see Situation.
    """

    def total(kind: str, name: str) -> int:
        return sum(int(getattr(facts, name) or 0) for _, facts in found if facts.kind == kind)

    def highest(name: str) -> float | None:
        return max((value for _, facts in found if (value := getattr(facts, name)) is not None), default=None)

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
        contradictions=sum(facts.contradictions for _, facts in found),
        agreement=min((each.agreement for _, each in found if each.agreement is not None), default=None),
        shallow_accuracy=highest("shallow_accuracy"),
        length_bias=highest("length_bias"),
        longest_tokens=max((facts.longest_tokens for _, facts in found), default=0),
        sources=sources,
        read_in_part={source: facts.records for source, facts in found if not facts.complete},
    )
