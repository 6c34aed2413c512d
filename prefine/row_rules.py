"""How a user says that rows are to be read: data.columns and data.pairs of a recipe, --column of a command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from prefine.errors import RecipeError

PairRule = Literal["best_worst", "adjacent", "all"]


@dataclass(frozen=True)
class RowRules:
    """What a user says about rows.

    Attributes:
        columns: the column of the file, by the name that prefine gives it; None leaves the column of that name unread.
            Dots go into objects: `input.prompt`.
        pairs: which pairs a row with several ranked answers gives.
        learned: whether the rows are to be learned, so that those marked as not to be are left out.
    """

    columns: Mapping[str, str | None] = field(default_factory=dict)
    pairs: PairRule = "best_worst"
    learned: bool = True


AS_WRITTEN = RowRules()


def columns_named(options: Sequence[str]) -> dict[str, str | None]:
    """The columns of `--column NAME=COLUMN` options; `NAME=` leaves the column NAME unread.

    Raises:
        RecipeError: an option of another form, or a name given twice.
    """
    columns: dict[str, str | None] = {}
    for option in options:
        name, equals, column = (part.strip() for part in option.partition("="))
        if not (name and equals):
            raise RecipeError(f"--column {option} is not of the form NAME=COLUMN", "Write --column prompt=question.")
        if name in columns:
            raise RecipeError(f"--column gives {name} twice", "Remove one of the two.")
        columns[name] = column or None
    return columns
