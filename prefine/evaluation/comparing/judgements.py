"""What `prefine judge` added to a comparison, kept in its folder: a later `prefine evaluate` has it, too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from prefine.comparisons.result import AnswerRow, Winner, WinRate
from prefine.evaluation.comparing.questions import digest_of
from prefine.runs.atomic import atomic_write, write_json


class KeptJudgement(BaseModel):
    """A judge's verdicts.

    Attributes:
        answers: hash of the judged prompts and answers; the verdicts hold for these only.
        win_rate: that came of them.
        verdicts: row by row of answers.jsonl; None where there is none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    answers: str
    win_rate: WinRate
    verdicts: list[Winner | None]


class _KeptFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    judgements: list[KeptJudgement]


def keep_judgements(file: Path, rows: Sequence[AnswerRow], rates: Sequence[WinRate]) -> None:
    """Add win rates and their verdicts to those that are kept; they replace those of the same judges on these answers.

    Args:
        rows: of answers.jsonl, with the verdicts.
    """
    digest = _digest(rows)
    new = [
        KeptJudgement(answers=digest, win_rate=rate, verdicts=[row.verdicts.get(rate.judge) for row in rows])
        for rate in rates
    ]
    _write(file, [*(_held(file) or []), *new])


def add_judgements(file: Path, earlier: Path) -> None:
    """Add the verdicts of another such file that this one lacks. Of a damaged one, its bytes are kept until there is
    one that can be read.
    """
    held, found = _held(file), _held(earlier)
    if found is None and not file.exists():
        with atomic_write(file) as temporary:
            temporary.write_bytes(earlier.read_bytes())
    elif found and (held is None or _places([*found, *held]) != _places(held)):
        _write(file, [*found, *(held or [])])


def _write(file: Path, judgements: Sequence[KeptJudgement]) -> None:
    """Write judgements; of several of one judge on the same answers the last one."""
    write_json(file, _KeptFile(judgements=list(_places(judgements).values())).model_dump(mode="json"))


def _places(judgements: Sequence[KeptJudgement]) -> dict[tuple[str, str], KeptJudgement]:
    return {(each.win_rate.judge, each.answers): each for each in judgements}


def kept_judgements(
    file: Path, rows: Sequence[AnswerRow], judges: Sequence[str]
) -> tuple[list[AnswerRow], list[WinRate], list[str]]:
    """The rows with the verdicts that are kept, their win rates, and warnings of those that are of other answers.

    Args:
        judges: whose verdicts are in the rows already; theirs are not read.
    """
    held = _held(file)
    if held is None:
        return list(rows), [], [f"{file} cannot be read, so its verdicts are left out: repeat `prefine judge`."]
    digest, found = _digest(rows), list(rows)
    own = [each for each in held if each.answers == digest and len(each.verdicts) == len(rows)]
    others = dict.fromkeys(each.win_rate.judge for each in held)
    warnings = [
        f"The verdicts by {name} are of other answers and are left out: repeat `prefine judge`."
        for name in others
        if name not in (*judges, *(each.win_rate.judge for each in own))
    ]
    rates: list[WinRate] = []
    for each in own:
        name = each.win_rate.judge
        if name in judges:
            continue
        rates.append(each.win_rate)
        found = [
            row if winner is None else row.model_copy(update={"verdicts": {**row.verdicts, name: winner}})
            for row, winner in zip(found, each.verdicts, strict=True)
        ]
    return found, rates, warnings


def _held(file: Path) -> list[KeptJudgement] | None:
    """None if the file is damaged."""
    if not file.exists():
        return []
    try:
        return _KeptFile.model_validate_json(file.read_bytes()).judgements
    except (OSError, ValidationError):
        return None


def _digest(rows: Sequence[AnswerRow]) -> str:
    return digest_of([(row.id, row.prompt, row.candidate.text, row.baseline.text) for row in rows])
