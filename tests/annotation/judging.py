"""Judgements for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prefine.annotation.records import Judgement


def judged(
    item: int,
    annotator: str,
    winner: str,
    models: Sequence[str] = ("new", "old"),
    *,
    criterion: str | None = None,
    first: int = 0,
    repeat: bool = False,
    seconds: float = 20.0,
    at: float | None = None,
    vote: int | None = None,
) -> Judgement:
    """A judgement on answers of two models, or of one. `winner` is a model, "tie", "up" or "down"."""
    answers = tuple(f"{model}-{item}" for model in models)
    return Judgement(
        vote=hash((item, annotator, repeat)) if vote is None else vote,
        item=item,
        annotator=annotator,
        answers=answers,
        models=tuple(models),
        winner=f"{winner}-{item}" if winner in models else winner,
        both_bad=False,
        criterion=criterion,
        first=answers[first],
        repeat=repeat,
        strength=None,
        seconds=seconds,
        at=float(item) if at is None else at,
    )


def table(votes: Mapping[str, str], **options: str | None) -> list[Judgement]:
    """Votes of each annotator on items 1, 2, …: n for new, o for old, t for a tie, a blank for no vote."""
    names = {"n": "new", "o": "old", "t": "tie"}
    return [
        judged(item, annotator, names[letter], **options)  # type: ignore[arg-type]
        for annotator, letters in votes.items()
        for item, letter in enumerate(letters, start=1)
        if letter != " "
    ]
