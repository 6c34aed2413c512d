"""The win rate by people's votes: from arena JSONL, or from an annotation project itself."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from prefine.annotation.database import PROJECT_FILE
from prefine.annotation.exporting import arena_votes
from prefine.annotation.project import ProjectReader
from prefine.comparisons.result import AnswerRow, Comparison, Winner, WinRate
from prefine.comparisons.votes import ArenaVote, RefusedVote, counted, read_votes
from prefine.comparisons.win_rate import WITHOUT_VOTE, length_difference, win_rate
from prefine.comparisons.without_vote import with_verdicts_without_vote
from prefine.errors import DataError
from prefine.formatting import plural
from prefine.judges.judging import first_of_each_prompt
from prefine.sqlite_file import is_sqlite

PEOPLE = "people"
"""The judge's name in the report."""


@dataclass
class FoundVotes:
    """Votes of a file or a project.

    Attributes:
        file: its name.
        refused: lines of a file that are no votes.
        left_out: a project's votes that cannot be used, by reason.
    """

    file: str
    votes: list[ArenaVote]
    refused: list[RefusedVote] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def find_votes(path: Path) -> FoundVotes:
    """The votes of a file of arena JSONL, of an annotation project, or of the project in a folder.

    Raises:
        DataError: it cannot be read, or holds no vote on two answers.
    """
    file = path / PROJECT_FILE.usual_name if path.is_dir() else path
    if path.is_dir() and not file.exists():
        raise DataError(
            f"{path} is a folder without {PROJECT_FILE.usual_name}",
            "Name an annotation project, or a file of votes.",
        )
    if not is_sqlite(file):
        votes, refused = read_votes(file)
        return FoundVotes(file.name, votes, refused)
    found = FoundVotes(file.name, [])
    found.votes += arena_votes(ProjectReader(file), found.left_out)
    if not found.votes:
        reasons = "; ".join(f"{reason} ({count})" for reason, count in found.left_out.items())
        raise DataError(
            f"{file} holds no vote on two answers{f': {reasons}' if reasons else ''}",
            "Let people compare answers first: prefine annotate open.",
        )
    return found


def judged_by_people(
    rows: list[AnswerRow], found: FoundVotes, comparison: Comparison
) -> tuple[list[AnswerRow], WinRate]:
    """The rows with people's verdicts, and their win rate."""
    places = first_of_each_prompt(rows)
    asked = [rows[place] for place in places]
    matched = counted(found.votes, asked, comparison.candidate.name, comparison.baseline.name)
    unused = found.left_out + Counter(matched.left_out)
    all_votes = matched.used + unused.total()
    warnings = [f"{count} of {all_votes} votes are not used: {reason}." for reason, count in unused.items()]
    if refused := found.refused:
        are_none = "is not a vote" if len(refused) == 1 else "are not votes"
        warnings.append(f"{plural(len(refused), 'line')} of {found.file} {are_none}; the first: {refused[0].reason}.")
    completed = with_verdicts_without_vote(matched.winners, asked)
    missing = completed.winners.count(None)
    rate = win_rate(
        PEOPLE,
        completed.winners,
        [length_difference(row) for row in asked],
        failed={WITHOUT_VOTE: missing} if missing else {},
        warnings=warnings + completed.notes,
        spent={"votes": float(matched.used)},
    )
    judged = [row.model_copy(update={"verdicts": _of_others(row)}) for row in rows]
    for place, winner in zip(places, completed.winners, strict=True):
        if winner is not None:
            judged[place] = judged[place].model_copy(update={"verdicts": judged[place].verdicts | {PEOPLE: winner}})
    return judged, rate


def _of_others(row: AnswerRow) -> dict[str, Winner]:
    return {name: winner for name, winner in row.verdicts.items() if name != PEOPLE}
