"""Reads the files of a comparison's folder."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from prefine.comparisons.result import AnswerRow, Comparison
from prefine.errors import CheckpointError

REPORT_NAME = "report.json"
ANSWERS_NAME = "answers.jsonl"
REGRESSION_NAME = "regression.jsonl"
PAGE_NAME = "report.html"


def read_comparison(folder: Path) -> Comparison:
    """The content of report.json.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    path = folder / REPORT_NAME
    try:
        return Comparison.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} holds no comparison", "Name the folder that `prefine evaluate` wrote."
        ) from None
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror}", "Move it away, or restore the file."
        ) from None
    except ValidationError as error:
        raise CheckpointError(f"{path} {_complaint(error)}", "Repeat the evaluation, or restore the file.") from None


def read_answers(folder: Path, name: str = ANSWERS_NAME) -> list[AnswerRow]:
    """The rows of answers.jsonl or regression.jsonl; empty if there is no file. A truncated last line is ignored.

    Raises:
        CheckpointError: it cannot be read, or a line before the last is damaged.
    """
    path = folder / name
    try:
        lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last line feed is not complete
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror}", "Move it away, or restore the file."
        ) from None
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(AnswerRow.model_validate_json(line))
        except ValidationError as error:
            raise CheckpointError(
                f"{path}, line {number} {_complaint(error)}", "Remove that line, or restore the file."
            ) from None
    return rows


def _complaint(error: ValidationError) -> str:
    """The first fault: `is not valid: metrics.0.finding: Field required`."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, first["loc"]))
    return f"is not valid: {f'{place}: ' if place else ''}{first['msg']}"
