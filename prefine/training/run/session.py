"""A run in progress: its folder, its model, its data, and the contents of its manifest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from prefine.data.prepare import Prepared
from prefine.models.loading.load import LoadedModel
from prefine.recipe.stage import StageRecipe
from prefine.runs.atomic import JSON, write_json
from prefine.runs.directory import RunDirectory, rows_of_kind
from prefine.training.display import Display
from prefine.training.loop.processes import Processes

R_co = TypeVar("R_co", bound=StageRecipe, covariant=True)


@dataclass
class Session(Generic[R_co]):
    """An opened run. It begins once the model is loaded and the data are prepared, and lasts to the report.

    Attributes:
        stage: name of the stage.
        recipe: the whole recipe of that stage.
        run: the run's folder.
        display: what the user sees.
        processes: the processes that train together.
        loaded: what the stage's `load` returned.
        prepared: the token stores of training and held-out rows.
        manifest: contents of manifest.json besides checks and warnings.
        checks: results of the self-checks so far.
        warnings: for the top of the report.
    """

    stage: str
    recipe: R_co
    run: RunDirectory
    display: Display
    processes: Processes
    loaded: LoadedModel
    prepared: Prepared
    manifest: dict[str, Any]
    checks: list[dict[str, JSON]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def write_manifest(self, status: str) -> None:
        """Write manifest.json with all that is known so far. Does nothing outside the main process."""
        if not self.processes.is_main:
            return
        self.run.require_here()
        self.manifest |= {"status": status, "self_checks": self.checks, "warnings": self.warnings}
        write_json(self.run.manifest, self.manifest)

    def record_checks(self, rows: Sequence[dict[str, JSON]]) -> None:
        """Keep results of self-checks. They take the places of earlier ones of the same name, as after a resume."""
        places = {row["name"]: place for place, row in enumerate(self.checks)}
        names = [row["name"] for row in rows]
        found = [*(row for row in self.checks if row["name"] not in names), *rows]
        self.checks[:] = sorted(found, key=lambda row: places.get(row["name"], len(places)))

    def override(self, *warnings: str) -> None:
        """Record warnings of checks that the user overrode; the report shows them at its top, too."""
        if not warnings:
            return
        self.warnings += warnings
        self.manifest["overridden"] = [*self.manifest.get("overridden", []), *warnings]

    def before_and_after(self) -> dict[str, dict[str, float]]:
        """The first held-out evaluation in the run's metrics, and that of the weights that are kept."""
        rows = rows_of_kind(self.run.metrics, "heldout")
        kept = next((row for row in rows if row["step"] == self.manifest.get("kept_step")), rows[-1])
        evaluations = [{k: v for k, v in row.items() if k not in ("kind", "step")} for row in (rows[0], kept)]
        return {"before": evaluations[0], "after": evaluations[1]}
