"""Votes read back: the judgements that they give, and how far the project is."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from itertools import combinations
from statistics import median

from prefine.annotation.records import (
    BOTH_BAD,
    RANKED,
    TIE,
    AnnotatorProgress,
    CastVote,
    HumanJudgement,
    JudgedAnswer,
    ProjectProgress,
)
from prefine.annotation.votes import SELECT_VOTES, vote_of

_CURRENT = "NOT EXISTS (SELECT 1 FROM undos u WHERE u.vote = v.number)"


def read_votes(connection: sqlite3.Connection, *, undone: bool = False) -> Iterator[CastVote]:
    """Votes in the order of writing; with `undone`, also those that were taken back."""
    where = "" if undone else f" WHERE {_CURRENT}"
    for row in connection.execute(f"{SELECT_VOTES}{where} ORDER BY v.number"):
        yield vote_of(row)


def answers_of(connection: sqlite3.Connection, item: int) -> tuple[JudgedAnswer, ...]:
    """The answers of an item, in the order of the import."""
    rows = connection.execute("SELECT id, text, model, run FROM answers WHERE item = ? ORDER BY place", (item,))
    return tuple(JudgedAnswer(*row) for row in rows)


def read_judgements(connection: sqlite3.Connection) -> Iterator[HumanJudgement]:
    """What the current votes say, in the order of writing."""
    models: dict[int, dict[str, str]] = {}
    for vote in read_votes(connection):
        if vote.item not in models:
            rows = connection.execute("SELECT id, model FROM answers WHERE item = ? ORDER BY place", (vote.item,))
            models[vote.item] = dict(rows.fetchall())
        yield from judgements_of(vote, models[vote.item])


def judgements_of(vote: CastVote, models: Mapping[str, str]) -> Iterator[HumanJudgement]:
    """The judgements of one vote: on the whole, then by criterion.

    Args:
        models: answer's id -> model, in the order of the import.
    """
    ballot = vote.ballot
    if vote.kind == "compare" and (ballot.choice in models or ballot.choice in (TIE, BOTH_BAD)):
        yield _judgement(vote, models, tuple(models), ballot.choice, None)
    elif ballot.choice == RANKED:
        places = {answer: place for place, group in enumerate(ballot.ranking) for answer in group}
        for pair in combinations(models, 2):
            first, second = (places[answer] for answer in pair)
            winner = TIE if first == second else pair[0] if first < second else pair[1]
            yield _judgement(vote, models, pair, winner, None)
    elif vote.kind == "thumb" and ballot.choice in ("up", "down"):
        yield _judgement(vote, models, tuple(models), ballot.choice, None)
    for name, value in ballot.criteria.items():
        if vote.kind == "rank":  # the best one is named, or all are alike
            for pair in combinations(models, 2):
                if value == TIE or value in pair:
                    yield _judgement(vote, models, pair, value, name)
        else:
            yield _judgement(vote, models, tuple(models), value, name)


def _judgement(
    vote: CastVote, models: Mapping[str, str], answers: tuple[str, ...], winner: str, criterion: str | None
) -> HumanJudgement:
    return HumanJudgement(
        vote=vote.number,
        item=vote.item,
        annotator=vote.annotator,
        answers=answers,
        models=tuple(models[answer] for answer in answers),
        winner=TIE if winner == BOTH_BAD else winner,
        both_bad=winner == BOTH_BAD,
        criterion=criterion,
        first=next(answer for answer in vote.shown if answer in answers),
        repeat=vote.repeat,
        strength=vote.ballot.strength if criterion is None else None,
        seconds=vote.ballot.seconds,
        at=vote.at,
    )


def read_progress(connection: sqlite3.Connection, overlap: int) -> ProjectProgress:
    """How far the project and each annotator are."""
    items, missing = connection.execute("SELECT items, missing FROM totals").fetchone()
    (complete,) = connection.execute("SELECT COUNT(*) FROM items WHERE missing <= 0").fetchone()
    (votes,) = connection.execute(
        f"SELECT COUNT(*) FROM votes v WHERE v.choice <> 'skip' AND NOT v.repeat AND {_CURRENT}"  # noqa: S608
    ).fetchone()
    return ProjectProgress(items, complete, votes, items * overlap, missing, tuple(_annotators(connection)))


def _annotators(connection: sqlite3.Connection) -> Iterator[AnnotatorProgress]:
    for number, name, paused in connection.execute("SELECT number, name, paused FROM annotators ORDER BY name"):
        rows = connection.execute(
            f"SELECT v.choice = 'skip', v.repeat, v.seconds, v.at FROM votes v WHERE v.annotator = ? AND {_CURRENT}",  # noqa: S608
            (number,),
        ).fetchall()
        yield AnnotatorProgress(
            name,
            len(rows),
            sum(row[0] for row in rows),
            sum(row[1] for row in rows),
            median(row[2] for row in rows) if rows else 0.0,
            bool(paused),
            max(row[3] for row in rows) if rows else None,
        )
