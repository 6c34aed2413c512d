"""Two or more runs side by side: their figures, and the fields in which their recipes differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefine.errors import RecipeError
from prefine.formatting import MISSING
from prefine.report.overlay import recipe_rows
from prefine.report.overview.page import short_names
from prefine.run import Run


@dataclass(frozen=True)
class RunComparison:
    """Runs side by side.

    Attributes:
        names: of the runs, unique. rows: what, and its value in each run: first figures, then recipe fields.
        figures: how many of the rows are figures.
    """

    names: list[str]
    rows: list[tuple[str, list[str]]]
    figures: int

    def as_json(self) -> dict[str, Any]:
        """The same, by run."""
        parts: Mapping[str, list[tuple[str, list[str]]]] = {
            "figures": self.rows[: self.figures],
            "recipe": self.rows[self.figures :],
        }
        return {
            run: {part: {name: values[place] for name, values in rows} for part, rows in parts.items()}
            for place, run in enumerate(self.names)
        }


def compare_runs(folders: Sequence[Path]) -> RunComparison:
    """Compare runs.

    Raises:
        RecipeError: fewer than two are named. CheckpointError: a folder holds no run, or is named twice.
    """
    if len(folders) < 2:
        raise RecipeError("one run is named, and nothing to compare it with", "Name two runs or more.", field="RUN")
    runs = [Run(folder) for folder in folders]
    figures = [{"stage": run.stage, "status": run.status, **run.figures()} for run in runs]
    labels = dict.fromkeys(label for each in figures for label in each)
    rows = [(label, [each.get(label, MISSING) for each in figures]) for label in labels]
    settings = [row for row in recipe_rows([run.recipe for run in runs]) if row.differs and row.name != "run"]
    return RunComparison(short_names(folders), [*rows, *((row.name, row.values) for row in settings)], len(rows))
