"""What run_export.py asks of a kind of model, and what it gets: artefacts with their proof."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from prefine.export.formats import Artefact, ExportOptions, Format
from prefine.export.reload import Reloaded, ReloadSpec
from prefine.runs.atomic import JSON

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

Reload = Callable[[ReloadSpec, Callable[[int], None]], Reloaded]
"""Loads an artefact and asks it; the second argument is called with the number of probes that are done."""


@dataclass(frozen=True)
class Proven:
    """An artefact and how it compares with the run.

    Attributes:
        artefact: what users load.
        proof: figures, for export.json.
        failures: the limits that it exceeds, in words; none if it is what was trained.
    """

    artefact: Artefact
    proof: Mapping[str, JSON]
    failures: Sequence[str]


class Exporter(Protocol):
    """Writes and proves models of one kind: those that generate text, or those that score it."""

    def require(self, form: Format, options: ExportOptions) -> None:
        """Check before any work what can be checked. Raises PrefineError."""

    def make(self, form: Format, folder: Path, options: ExportOptions, progress: Progress) -> list[Proven]:
        """Fill an empty folder, load what is in it elsewhere, and compare."""

    def artefacts(self, form: Format, folder: Path, options: ExportOptions) -> list[Artefact]:
        """What `make` made in a folder, with the limits of this release."""

    def again(self, folder: Path, artefacts: Sequence[Artefact], progress: Progress) -> list[Proven]:
        """Compare artefacts that were made before."""

    def table(self, proofs: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
        """Proofs as text: a header, then a row for each."""

    def card_lines(self, proven: Sequence[Proven]) -> Iterator[str]:
        """What README.md says of the proof, in Markdown."""
