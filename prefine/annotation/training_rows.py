"""A project's votes -> rows to train on. Every vote becomes part of a row or is handed on with the reason why not.

Votes of several annotators on a pair are one row, by majority; as many votes for each side are a tie. If most say that
both answers are bad, the pair is a tie and both answers are false. Repeats of an annotator are left out: they measure
self-consistency.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from prefine.annotation.project import ProjectReader
from prefine.annotation.reading import judgements_of
from prefine.annotation.records import SKIP, TIE, AnnotationItem, CastVote, HumanJudgement, JudgedAnswer
from prefine.feedback.judgements import Unused
from prefine.feedback.training_rows import FeedbackRow, Wanted

_SKIPPED = Unused("vote", "is a skip")
_REPEATED = Unused("vote", "repeats an earlier one of the annotator, to measure self-consistency")
_SAME = Unused("answers", "are the same text")
_BLANK = Unused("answer", "is blank")
_UNCHANGED = Unused("text", "is the answer itself")
_NO_PAIR = Unused("vote", "is on a single answer, so it says nothing about two")
_UNDECIDED = Unused("votes", "are as many for the answer as against it")


@dataclass
class JudgedItem:
    """An item with its current votes but repeats and skips, in the order of writing."""

    item: AnnotationItem
    votes: list[CastVote] = field(default_factory=list)

    @property
    def judgements(self) -> list[HumanJudgement]:
        """Of the whole, without criteria."""
        models = {each.id: each.model for each in self.item.answers}
        return [found for vote in self.votes for found in judgements_of(vote, models) if found.criterion is None]


@dataclass(frozen=True)
class PairTally:
    """What people said about two answers of an item.

    Attributes:
        first, second: in the order of the import.
        balance: votes for the first minus votes for the second; 0 if most said that both are bad.
        judgements: at least one.
    """

    first: JudgedAnswer
    second: JudgedAnswer
    balance: int
    judgements: tuple[HumanJudgement, ...]

    @property
    def number(self) -> int:
        """Of the last vote."""
        return max(each.vote for each in self.judgements)


def annotation_rows(path: Path, wanted: Wanted | None = None) -> Iterator[FeedbackRow]:
    """What a project gives to train on.

    Args:
        path: the project; a page may be writing it.
        wanted: what to read it as; None takes votes of thumbs, else preferences.

    Raises:
        DataError: it is not a project, or cannot be read.
    """
    project = ProjectReader(path)
    wanted = wanted or ("votes" if project.settings.kind == "thumb" else "preferences")
    if wanted == "prompts":
        yield from _prompts(project)
        return
    judged, unused = judged_items(project)
    yield from unused
    for each in judged:
        if wanted == "preferences":
            yield from _preferences(each)
        else:
            for row in _labelled(each):
                yield _demonstration(row) if wanted == "demonstrations" else row


def content_digest(path: Path) -> str:
    """SHA-256 of all that could be trained on. The file's own bytes change without that, as its log is written back.

    Raises:
        DataError: it is not a project, or cannot be read.
    """
    digest = hashlib.sha256()
    wanted: Wanted
    for wanted in ("preferences", "votes", "demonstrations", "prompts"):
        for row in annotation_rows(path, wanted):
            if row.value is not None:
                digest.update(json.dumps([wanted, row.value]).encode() + b"\n")
    return digest.hexdigest()


def judged_items(project: ProjectReader) -> tuple[list[JudgedItem], list[FeedbackRow]]:
    """The items that have votes, in the order of their first vote; and votes that are not used, with reasons."""
    found: dict[int, JudgedItem] = {}
    unused = []
    for vote in project.votes():
        if vote.repeat or vote.ballot.choice == SKIP:
            unused.append(FeedbackRow(vote.number, unused=_REPEATED if vote.repeat else _SKIPPED))
            continue
        if vote.item not in found:
            found[vote.item] = JudgedItem(project.item(vote.item))
        found[vote.item].votes.append(vote)
    return [*found.values()], unused


def pair_tallies(judged: JudgedItem) -> Iterator[PairTally]:
    """Every pair of answers that was compared."""
    judgements = [each for each in judged.judgements if len(each.answers) == 2]
    for first, second in combinations(judged.item.answers, 2):
        own = tuple(each for each in judgements if each.answers == (first.id, second.id))
        if own:
            balance = sum((each.winner == first.id) - (each.winner == second.id) for each in own)
            most_bad = 2 * sum(each.both_bad for each in own) > len(own)
            yield PairTally(first, second, 0 if most_bad else balance, own)


def _preferences(judged: JudgedItem) -> Iterator[FeedbackRow]:
    for tally in pair_tallies(judged):
        yield _preference(judged.item, tally)
    yield from (
        FeedbackRow(vote.number, unused=_NO_PAIR)
        for vote in judged.votes
        if vote.kind == "thumb" and vote.ballot.text is None
    )
    for vote, original in _rewrites(judged):
        if isinstance(original, Unused):
            yield FeedbackRow(vote.number, unused=original)
            continue
        if not original.text.strip():
            yield FeedbackRow(vote.number, unused=_BLANK)
            continue
        columns = _columns(judged.item, original, (vote,), "rewrite")
        columns["id"] += f"/rewritten-{vote.number}"
        yield FeedbackRow(
            vote.number, {**columns, "chosen": _turn(vote.ballot.text or ""), "rejected": _turn(original.text)}
        )


def _preference(item: AnnotationItem, tally: PairTally) -> FeedbackRow:
    if tally.first.text == tally.second.text:
        return FeedbackRow(tally.number, unused=_SAME)
    if not (tally.first.text.strip() and tally.second.text.strip()):
        return FeedbackRow(tally.number, unused=_BLANK)
    chosen, rejected = (tally.first, tally.second) if tally.balance >= 0 else (tally.second, tally.first)
    winners = Counter(each.winner for each in tally.judgements)
    columns = _columns(item, chosen, tally.judgements, "comparison")
    if len(item.answers) > 2:
        places = [item.answers.index(each) + 1 for each in (chosen, rejected)]
        columns["id"] += f"/{places[0]}>{places[1]}"
    strengths = [each.strength for each in tally.judgements if each.strength is not None and each.winner == chosen.id]
    row: dict[str, Any] = {
        **columns,
        "chosen": _turn(chosen.text),
        "rejected": _turn(rejected.text),
        "rejected_model": rejected.model,
        "rejected_run": rejected.run,
        "votes_for": winners[chosen.id],
        "votes_against": winners[rejected.id],
        "votes_tied": winners[TIE],
        **({"mean_strength": sum(strengths) / len(strengths)} if strengths and tally.balance else {}),
        **({"tie": True} if tally.balance == 0 else {}),
    }
    return FeedbackRow(tally.number, row)


def _labelled(judged: JudgedItem) -> Iterator[FeedbackRow]:
    """Answers with a thumb: up for what won more of its comparisons than it lost, and for what was rewritten to."""
    balance: Counter[str] = Counter()
    concerned: dict[str, list[HumanJudgement]] = {each.id: [] for each in judged.item.answers}
    bad: Counter[str] = Counter()
    for each in judged.judgements:
        for name in each.answers:
            concerned[name].append(each)
            bad[name] += each.both_bad
        if each.winner in ("up", "down"):
            balance[each.answers[0]] += 1 if each.winner == "up" else -1
        elif each.winner != TIE:
            for name in each.answers:
                balance[name] += 1 if name == each.winner else -1
    for answer in judged.item.answers:
        votes = concerned[answer.id]
        if not votes:
            continue
        most_bad = 2 * bad[answer.id] > len(votes)
        number, worth = max(each.vote for each in votes), -1 if most_bad else balance[answer.id]
        if worth == 0:
            yield FeedbackRow(number, unused=_UNDECIDED)
        elif not answer.text.strip():
            yield FeedbackRow(number, unused=_BLANK)
        else:
            yield _labelled_row(judged.item, answer, votes, number, label=worth > 0)
    for vote, original in _rewrites(judged):
        if isinstance(original, Unused):
            yield FeedbackRow(vote.number, unused=original)
            continue
        columns = _columns(judged.item, original, (vote,), "rewrite")
        columns["id"] += f"/rewritten-{vote.number}"
        yield FeedbackRow(vote.number, {**columns, "completion": _turn(vote.ballot.text or ""), "label": True})
        if not concerned[original.id] and original.text.strip():
            yield _labelled_row(judged.item, original, (vote,), vote.number, label=False)


def _labelled_row(
    item: AnnotationItem,
    answer: JudgedAnswer,
    votes: list[HumanJudgement] | tuple[CastVote, ...],
    number: int,
    *,
    label: bool,
) -> FeedbackRow:
    columns = _columns(item, answer, votes, "vote")
    if len(item.answers) > 1:
        columns["id"] += f"/{item.answers.index(answer) + 1}"
    return FeedbackRow(number, {**columns, "completion": _turn(answer.text), "label": label})


def _demonstration(row: FeedbackRow) -> FeedbackRow:
    if row.value is None:
        return row
    if not row.value["label"]:
        return FeedbackRow(row.number, unused=Unused("answer", "was judged worse, and is not to be imitated"))
    return FeedbackRow(row.number, {name: value for name, value in row.value.items() if name != "label"})


def _prompts(project: ProjectReader) -> Iterator[FeedbackRow]:
    for item in project.items():
        yield FeedbackRow(
            item.id, {"prompt": _turns(item), "id": item.name, **({"category": item.category} if item.category else {})}
        )


def _rewrites(judged: JudgedItem) -> Iterator[tuple[CastVote, JudgedAnswer | Unused]]:
    """Votes with an edited answer, and the answer that was edited, or why the text is of no use."""
    answers = {each.id: each for each in judged.item.answers}
    for vote in judged.votes:
        if vote.ballot.text is not None and vote.ballot.text_of is not None:
            original = answers[vote.ballot.text_of]
            yield vote, _UNCHANGED if vote.ballot.text == original.text else original


def _columns(
    item: AnnotationItem,
    answer: JudgedAnswer,
    votes: tuple[HumanJudgement, ...] | list[HumanJudgement] | tuple[CastVote, ...],
    source: str,
) -> dict[str, Any]:
    """The prompt and where the row is from: pseudonyms and times of the votes, the model and its run."""
    return {
        "prompt": _turns(item),
        "id": item.name,
        **({"category": item.category} if item.category else {}),
        "model": answer.model,
        "run": answer.run,
        "annotators": sorted({each.annotator for each in votes}),
        "voted_at": max(each.at for each in votes),
        "source": source,
    }


def _turns(item: AnnotationItem) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in item.prompt]


def _turn(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]
