"""What `prefine judge` added to a comparison, kept in its folder: a later `prefine evaluate` has it, too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from prefine.comparisons.result import AnswerRow, Winner, WinRate
from prefine.evaluation.comparing.questions import digest_of
from prefine.runs.atomic import write_json


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
    """Add win rates and their verdicts to those that are kept; they replace those of the same judges.

    Args:
        rows: of answers.jsonl, with the verdicts.
    """
    digest = _digest(rows)
    new = {
        rate.judge: KeptJudgement(
            answers=digest, win_rate=rate, verdicts=[row.verdicts.get(rate.judge) for row in rows]
        )
        for rate in rates
    }
    held = {each.win_rate.judge: each for each in _held(file) or []}
    write_json(file, _KeptFile(judgements=list((held | new).values())).model_dump(mode="json"))


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
    rates: list[WinRate] = []
    warnings: list[str] = []
    for each in held:
        name = each.win_rate.judge
        if name in judges:
            continue
        if each.answers != digest or len(each.verdicts) != len(rows):
            warnings.append(f"The verdicts by {name} are of other answers and are left out: repeat `prefine judge`.")
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
