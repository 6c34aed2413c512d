"""A user's rules for reading rows: data.columns and data.pairs of a recipe, --column of a command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from prefine.errors import RecipeError

PairRule = Literal["best_worst", "adjacent", "all"]


@dataclass(frozen=True)
class RowRules:
    """A user's rules for reading rows.

    Attributes:
        columns: prefine's name -> the file's column; None ignores the column of that name. Dots lead into objects:
            `input.prompt`.
        pairs: rule for the pairs of a row with several ranked answers.
        learned: whether the rows are learned, so that rows marked as not to be learned are left out.
    """

    columns: Mapping[str, str | None] = field(default_factory=dict)
    pairs: PairRule = "best_worst"
    learned: bool = True


AS_WRITTEN = RowRules()


def columns_named(options: Sequence[str]) -> dict[str, str | None]:
    """The columns of `--column NAME=COLUMN` options; `NAME=` ignores the column NAME.

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
