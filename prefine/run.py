"""A run's metrics, results and model. Only the model needs torch."""

from __future__ import annotations

import html
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefine.errors import CheckpointError
from prefine.report.facts import RunFacts, count, mapping, read_run, text
from prefine.report.headline import headline, tiles
from prefine.row_list import Rows
from prefine.runs.directory import RunDirectory, read_metrics

if TYPE_CHECKING:
    from prefine.named_model import Model


class Run(os.PathLike[str]):
    """A run, finished or not. Every access reads its folder.

    `os.fspath(run)`, and a recipe's `model.name`, treat it as its folder.

    Attributes:
        path: its folder.

    Raises:
        CheckpointError: there is no run in that folder.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._directory = RunDirectory(self.path)
        if not self._directory.holds_run:
            raise CheckpointError(f"{self.path} holds no run", "Name a run's folder, for example runs/dpo.")

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def stage(self) -> str:
        """sft, dpo, kto, orpo, reward or ppo."""
        return self._facts.stage

    @property
    def status(self) -> str:
        """finished; stopped (on request) or failed, and can be resumed; running, or was killed and can be resumed."""
        return text(self._facts.manifest.get("status")) or "unknown"

    @property
    def recipe(self) -> dict[str, Any]:
        """The complete recipe."""
        return dict(mapping(self._facts.manifest.get("recipe")))

    @property
    def warnings(self) -> list[str]:
        """The run's warnings."""
        found = self._facts.manifest.get("warnings")
        return [str(each) for each in found] if isinstance(found, list) else []

    def metrics(self, kind: str | None = None) -> Rows:
        """The rows of metrics.jsonl as dicts, with `kind` (train, heldout or guard) and `step`.

        Args:
            kind: only rows of this kind.
        """
        return Rows(row for row in read_metrics(self._directory.metrics) if kind in (None, row.get("kind")))

    @property
    def evaluation(self) -> dict[str, Any]:
        """evaluation.json: held-out figures and samples before and after training; {} until the run ends."""
        return dict(self._facts.evaluation)

    @property
    def report(self) -> Path:
        """Path of the report, which exists once the run has finished."""
        return self._directory.report

    @cached_property
    def model(self) -> Model:
        """The trained model, to generate with, or to score with if it is a reward model.

        Raises:
            ModelError: the run has no result yet.
        """
        from prefine.named_model import load

        return load(self.path)

    @property
    def result(self) -> str:
        """The main result in a sentence."""
        return _plain(headline(self._facts).sentence)

    def figures(self) -> dict[str, str]:
        """Key figures, as text with their units."""
        return dict(_figures(self._facts))

    def __repr__(self) -> str:
        return f"<Run {self.path}: {self.stage}, {self.status}. {self.result}>"

    def _repr_html_(self) -> str:
        facts = self._facts
        rows = [("stage", self.stage), ("status", self.status), ("result", self.result), *_figures(facts)]
        cells = "".join(
            f'<tr><th style="text-align:left">{html.escape(name)}</th>'
            f'<td style="text-align:left">{html.escape(value)}</td></tr>'
            for name, value in rows
        )
        link = ""
        if self.report.is_file():
            link = f'<a href="{html.escape(self.report.as_posix())}" target="_blank">report</a>'
        return f"<table><caption>{html.escape(str(self.path))} {link}</caption>{cells}</table>"

    @property
    def _facts(self) -> RunFacts:
        return read_run(self.path)


def find_runs(folder: Path) -> tuple[list[Run], list[CheckpointError]]:
    """The runs in a folder and its subfolders, newest first, and errors of those left out."""
    begun: list[tuple[str, Run]] = []
    errors: list[CheckpointError] = []
    for manifest in (*folder.glob("*/manifest.json"), *folder.glob("*/*/manifest.json")):
        try:
            run = Run(manifest.parent)
            facts = run._facts
        except CheckpointError as error:
            errors.append(error)
            continue
        if facts.stage:  # other programs also write files of that name
            begun.append((text(facts.manifest.get("started")) or "", run))
    return [run for _, run in sorted(begun, key=lambda each: (each[0], str(each[1].path)), reverse=True)], errors


def _figures(facts: RunFacts) -> Iterator[tuple[str, str]]:
    steps = [step for row in facts.train if (step := count(row.get("step"))) is not None]
    if steps:
        yield "steps", f"{steps[-1]:,}"
    for tile in tiles(facts):
        said = " ".join(part for part in (tile.value, tile.unit) if part)
        yield tile.label, _plain(f"{said} ({tile.before})" if tile.before else said)


def _plain(told: str) -> str:
    """Without typographic spaces."""
    return told.replace("\u202f", " ").replace("\u2060", "")
