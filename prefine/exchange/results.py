"""Results that another program has logged, one row for each case or battle and model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from prefine.runs.atomic import JSON


@dataclass(frozen=True)
class ResultRow:
    """One answer of one model, as another program checked it.

    Attributes:
        id: of the case or battle, as it was written; the log's own number if the log does not say.
        model: as the log names it.
        answer: what the model wrote; of a battle the judge's text. None if the log does not hold it.
        expected: answers that count as right.
        passed: None if nothing was checked.
        score: 0 to 1, or as the check defines it.
        choice: a judge's verdict, in the log's words.
        winner: the side that the verdict preferred; None if the log does not say which side stood where.
        error: why there is no result; empty if there is one.
    """

    id: str
    model: str
    answer: str | None = None
    expected: tuple[str, ...] = ()
    passed: bool | None = None
    score: float | None = None
    choice: str | None = None
    winner: str | None = None
    error: str = ""

    def as_json(self) -> dict[str, JSON]:
        """For a line of a file."""
        return asdict(self) | {"expected": list(self.expected)}


@dataclass
class ResultLog:
    """A whole log.

    Attributes:
        name: of the evaluation.
        report: the log's own totals; empty if it has none.
        remarks: what a user should know about the log.
    """

    name: str
    rows: list[ResultRow]
    report: dict[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    @property
    def passed(self) -> int:
        """Rows that passed."""
        return sum(row.passed is True for row in self.rows)

    @property
    def checked(self) -> int:
        """Rows that passed or failed."""
        return sum(row.passed is not None for row in self.rows)
