"""The page of a pipeline, as HTML without scripts, from what is known of its stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prefine.formatting import listing, plural
from prefine.report.page import render
from prefine.runs.atomic import write_text
from prefine.runs.ownership import refuse_foreign_page


@dataclass(frozen=True)
class StageFigure:
    """One figure of a stage, and its value before training if that is known."""

    label: str
    value: str
    before: str = ""


@dataclass(frozen=True)
class StageLine:
    """One stage on the page.

    Attributes:
        name, method: of the stage.
        state: done, out of date, gate not passed, failed, interrupted, or not run. why: the reason, if there is one.
        parents: the stages that it needs.
        seconds: that it took, as text; empty if unknown.
        sentence: the main result.
        figures: further ones.
        links: names and relative paths of its own pages.
    """

    name: str
    method: str
    state: str
    why: str = ""
    parents: list[str] = field(default_factory=list)
    seconds: str = ""
    sentence: str = ""
    figures: list[StageFigure] = field(default_factory=list)
    links: list[tuple[str, str]] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Whether it is done."""
        return self.state == "done"


def write_pipeline_page(name: str, lines: Sequence[StageLine], page: Path) -> Path:
    """Write the page of a pipeline; returns its path.

    Raises:
        CheckpointError: a page that prefine did not write is in its place, or it cannot be written.
    """
    refuse_foreign_page(page)
    write_text(page, pipeline_html(name, lines))
    return page


def pipeline_html(name: str, lines: Sequence[StageLine]) -> str:
    """The page."""
    done = sum(line.is_good for line in lines)
    heading = f"All {plural(len(lines), 'stage')} are done" if len(lines) > 1 else "The stage is done"
    if done < len(lines):
        heading = f"{done} of {plural(len(lines), 'stage')} done"
    closed = [line.name for line in lines if line.state == "gate not passed"]
    context = {
        "title": f"{name} · prefine pipeline",
        "name": name,
        "heading": heading,
        "warning": f"The gate of {listing(closed)} is not passed: its candidate is not exported." if closed else "",
        "lines": list(lines),
    }
    return render(context, "pipeline.html.j2")
