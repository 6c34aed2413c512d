"""Prompts on which people need not vote: both answers say the same, or one of them is blank.

An annotation project does not ask about such prompts. Left out of the win rate, a model would lose nothing by blank
answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prefine.comparisons.result import AnswerRow, Winner
from prefine.comparisons.sentences import capital
from prefine.degeneration import is_blank
from prefine.formatting import plural
from prefine.intervals import evenly_chosen

_WHY: dict[Winner, str] = {
    "baseline": "the candidate's answer is blank",
    "tie": "both answers are the same",
    "candidate": "the baseline's answer is blank",
}
_COUNTS_AS: dict[Winner, tuple[str, str]] = {
    "baseline": ("loss", "losses"),
    "tie": ("tie", "ties"),
    "candidate": ("win", "wins"),
}


@dataclass(frozen=True, slots=True)
class CompletedVerdicts:
    """People's verdicts, and those that need no vote.

    Attributes:
        winners: of each row; None without a verdict.
        notes: which verdicts nobody voted for, with their number and reason.
    """

    winners: list[Winner | None]
    notes: list[str]


def verdict_without_vote(row: AnswerRow) -> Winner | None:
    """The verdict that needs no vote: a blank answer loses, equal ones are a tie; None if people have to look."""
    now, was = row.candidate.text, row.baseline.text
    blank = is_blank(now), is_blank(was)
    if now == was or all(blank):
        return "tie"
    if any(blank):
        return "baseline" if blank[0] else "candidate"
    return None


def with_verdicts_without_vote(winners: Sequence[Winner | None], rows: Sequence[AnswerRow]) -> CompletedVerdicts:
    """Add the verdicts that need no vote, where there is no vote.

    If people voted on a part of the other prompts only, the same part of these counts, evenly spaced: all of them would
    outweigh the votes.

    Args:
        winners: of each row, by people's votes.
    """
    implied = [verdict_without_vote(row) for row in rows]
    voted = [winner is not None for winner, known in zip(winners, implied, strict=True) if known is None]
    found, notes = list(winners), []
    for verdict in _WHY:
        places = [place for place, each in enumerate(implied) if each == verdict and winners[place] is None]
        count = round(len(places) * sum(voted) / len(voted)) if voted else len(places)
        for chosen in evenly_chosen(len(places), count) if count else ():
            found[places[chosen]] = verdict
        if places:
            notes.append(_note(verdict, count, len(places), voted))
    return CompletedVerdicts(found, notes)


def _note(verdict: Winner, count: int, of: int, voted: Sequence[bool]) -> str:
    text = f"{capital(_WHY[verdict])} on {plural(of, 'prompt')} that nobody voted on, which count as "
    text += plural(count, *_COUNTS_AS[verdict])
    return f"{text}." if count == of else f"{text}, as people voted on {sum(voted)} of the other {len(voted)}."
