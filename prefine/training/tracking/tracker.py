"""What every tracker of one run is asked, and what all of them need to answer."""

from __future__ import annotations

import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefine.recipe.stage import StageRecipe

Table = Sequence[Mapping[str, Any]]
"""Rows with the same columns."""

Values = Mapping[str, Sequence[float]]
"""A number for each answer or row, by name."""

_ID_LETTERS = 8
# MLflow refuses other characters; the names are the same in all trackers.
_NOT_IN_NAMES = re.compile(r"[^\w\-. /]")


@dataclass(frozen=True)
class Details:
    """What trackers show of a step or an evaluation besides its metrics.

    Attributes:
        values: become histograms.
        rows: become a table.
    """

    values: Values = field(default_factory=dict)
    rows: Table = ()


@dataclass(frozen=True)
class TrackedRun:
    """What trackers are told of a run when they start.

    Attributes:
        resumed: whether the run goes on; it then continues the tracker's own run.
    """

    recipe: StageRecipe
    stage: str
    run_id: str
    resumed: bool

    @property
    def name(self) -> str:
        """The run's name: its folder, without `runs/`; of an absolute path the last part."""
        path = Path(self.recipe.run)
        return path.name if path.is_absolute() else path.as_posix().removeprefix("runs/")

    @property
    def unique_name(self) -> str:
        """The name and the start of the run's id, for trackers that find a run by its name."""
        return f"{self.name}-{self.run_id[:_ID_LETTERS]}"

    @property
    def project(self) -> str:
        """The project's name."""
        return self.recipe.training.tracker_project

    @property
    def configuration(self) -> dict[str, Any]:
        """The stage and all fields of the recipe, nested."""
        return {"stage": self.stage, **self.recipe.model_dump(mode="json")}


class Tracker(ABC):
    """One tracker of one run. Whatever its methods raise is the tracker's own.

    Names have only letters, digits and `_-. /`. Steps may repeat, and go back after a guard's roll-back or a resume.
    """

    @abstractmethod
    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log metrics of a step."""

    @abstractmethod
    def histograms(self, values: Values, step: int) -> None:
        """Log distributions. Each has at least one value, and all values are finite."""

    @abstractmethod
    def table(self, name: str, rows: Table, step: int) -> None:
        """Show rows, at least one."""

    @abstractmethod
    def close(self, *, failed: bool) -> None:
        """Finish: nothing more will be logged.

        Args:
            failed: whether the run ended with an error.
        """


StartTracker = Callable[[TrackedRun], Tracker]


def tracker_name(name: str) -> str:
    """A metric's name in all trackers."""
    return _NOT_IN_NAMES.sub("_", name)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields by dotted names; lists and nulls as JSON, for trackers that only filter by single values."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value if isinstance(value, bool | int | float | str) else json.dumps(value)
    return found


def numbers(rows: Table) -> dict[str, list[float]]:
    """The numeric columns of a table, without missing values."""
    columns: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                columns.setdefault(name, []).append(float(value))
    return columns


def finite(values: Values) -> dict[str, list[float]]:
    """The finite values by their names in trackers; names without any are left out."""
    kept = {tracker_name(name): [value for value in given if math.isfinite(value)] for name, given in values.items()}
    return {name: given for name, given in kept.items() if given}


def text_of(value: Any) -> str:
    """A cell as text: a conversation as its turns."""
    if isinstance(value, list) and all(isinstance(turn, dict) and "content" in turn for turn in value):
        return "\n".join(f"{turn.get('role')}: {turn['content']}" for turn in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def cell_of(value: Any) -> bool | int | float | str | None:
    """A cell as a single value."""
    return value if value is None or isinstance(value, bool | int | float) else text_of(value)
