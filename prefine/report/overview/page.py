"""Several runs on one page: key figures in a table, curves in common charts, and what differs in their recipes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefine.errors import CheckpointError
from prefine.formatting import INTERVAL, MISSING, moment, percent_range, plural
from prefine.report.cautions import cautions
from prefine.report.charts import Key
from prefine.report.facts import RunFacts, mapping, read_run, text
from prefine.report.headline import headline, tiles
from prefine.report.overlay import NamedRun, events_of, overlaid, recipe_rows
from prefine.report.page import recipe_yaml, render
from prefine.report.parts import Caution, Tile
from prefine.report.plots import RUN_INKS
from prefine.report.stages.registry import stage_report, stage_title
from prefine.runs.atomic import write_text
from prefine.runs.ownership import is_own_page

MOST_RUNS = 2 * len(RUN_INKS)
"""Each colour with a solid and a dashed line."""


def write_overview(folders: Sequence[Path], page: Path) -> Path:
    """Write one page on several runs. Returns the page's path.

    Raises:
        CheckpointError: a folder holds no run or is named twice, there are too many, a file of a run is damaged, or
            the page cannot be written.
    """
    require_page(page)
    if len(folders) > MOST_RUNS:
        raise CheckpointError(
            f"{len(folders)} runs are more than the {MOST_RUNS} that one page can show", "Name fewer of them."
        )
    names = short_names(folders)
    html = render(
        overview_context(dict(zip(names, map(read_run, folders), strict=True))),
        "overview.html.j2",
    )
    write_text(page, html)
    return page


def require_page(page: Path) -> None:
    """Raise CheckpointError if something other than a page by prefine is in its place."""
    if page.is_dir():
        raise CheckpointError(f"--out {page} is a folder", "Name a file in it, such as compared.html.")
    if page.exists() and not is_own_page(page):
        raise CheckpointError(f"{page} was not written by prefine", "Move it away, or choose another name.")


def short_names(folders: Sequence[Path]) -> list[str]:
    """The last parts of the folders' paths, as few as make them unique.

    Raises:
        CheckpointError: two are the same folder.
    """
    places = [folder.resolve() for folder in folders]
    for folder, place in zip(folders, places, strict=True):
        if places.count(place) > 1:
            raise CheckpointError(f"{folder} is named twice", "Name each run once.")
    size = 1
    while len({place.parts[-size:] for place in places}) < len(places):
        size += 1
    return [Path(*place.parts[-size:]).as_posix() for place in places]


@dataclass(frozen=True)
class RunLine:
    """One run: what it is and its main result."""

    name: str
    key: Key
    stage: str
    status: str
    model: str
    started: str
    result: str


@dataclass(frozen=True)
class FigureCell:
    """A key figure of one run; empty texts if it has none."""

    value: str = ""
    before: str = ""
    note: str = ""


@dataclass(frozen=True)
class FigureRow:
    """One key figure of all runs."""

    label: str
    cells: list[FigureCell]


@dataclass(frozen=True)
class RunWarnings:
    """The warnings of one run."""

    name: str
    cautions: list[Caution]


@dataclass(frozen=True)
class RunRecipe:
    """A run's resolved recipe as YAML."""

    name: str
    yaml: str


def overview_context(runs: dict[str, RunFacts]) -> dict[str, Any]:
    """All content of the page as formatted text, by the template's names.

    Args:
        runs: by unique names.
    """
    named = [
        NamedRun(name, facts, RUN_INKS[place % len(RUN_INKS)], "dashed" if place >= len(RUN_INKS) else "solid")
        for place, (name, facts) in enumerate(runs.items())
    ]
    recipes = [mapping(facts.manifest.get("recipe")) for facts in runs.values()]
    settings = [row for row in recipe_rows(recipes) if row.name != "run"]  # the folder's name always differs
    return {
        "title": f"{', '.join(runs)} · prefine",
        "heading": f"{plural(len(runs), 'run')} compared",
        "names": list(runs),
        "lines": [_line(run) for run in named],
        "figures": _figures(list(runs.values())),
        "curves": overlaid(named),
        "events": events_of(named),
        "differ": [row for row in settings if row.differs],
        "equal": [row for row in settings if not row.differs],
        "comparability": list(_comparability(runs)),
        "warnings": [RunWarnings(name, found) for name, facts in runs.items() if (found := cautions(facts))],
        "recipes": [
            RunRecipe(name, yaml)
            for name, facts in runs.items()
            if (yaml := recipe_yaml(mapping(facts.manifest.get("recipe"))))
        ],
    }


def _line(run: NamedRun) -> RunLine:
    manifest = run.facts.manifest
    return RunLine(
        run.name,
        Key(run.ink, "dashed" if run.style == "dashed" else "line", run.name),
        stage_title(run.facts) or "unknown stage",
        text(manifest.get("status")) or "unknown",
        text(mapping(manifest.get("model")).get("name")) or "",
        moment(text(manifest.get("started_at")) or text(manifest.get("started"))) or "",
        headline(run.facts).sentence,
    )


def _figures(runs: Sequence[RunFacts]) -> list[FigureRow]:
    """The key figures of the results first, then those of the runs' cost."""
    results = [_result_cells(facts) for facts in runs]
    costs = [{tile.label: _cell(tile) for tile in tiles(facts)} for facts in runs]
    labels = dict.fromkeys(label for cells in (*results, *costs) for label in cells)
    return [
        FigureRow(
            label,
            [
                result.get(label) or cost.get(label) or FigureCell(MISSING)
                for result, cost in zip(results, costs, strict=True)
            ],
        )
        for label in labels
    ]


def _result_cells(facts: RunFacts) -> dict[str, FigureCell]:
    """The shares that a page of one run draws below its headline, and its tiles."""
    report = stage_report(facts)
    shares = {}
    for scale in report.scales(facts):
        *was, now = scale.whiskers
        shares[scale.label] = FigureCell(
            now.text, " ".join(f"{each.when} {each.text}" for each in was), f"{INTERVAL} {percent_range(now.interval)}"
        )
    return {**shares, **{tile.label: _cell(tile) for tile in report.tiles(facts)}}


def _cell(tile: Tile) -> FigureCell:
    return FigureCell(f"{tile.value} {tile.unit}".strip(), tile.before, tile.note)


def _comparability(runs: dict[str, RunFacts]) -> list[str]:
    """Why figures of these runs may not be comparable."""
    lines = []
    if len({facts.stage for facts in runs.values()}) > 1:
        lines.append("The runs are of several stages. Losses of different stages are not comparable.")
    heldout: dict[str, list[str]] = {}
    for name, facts in runs.items():
        digest = text(mapping(mapping(facts.manifest.get("prepared")).get("digests")).get("heldout"))
        if digest:
            heldout.setdefault(digest, []).append(name)
    if len(heldout) > 1:
        groups = "; ".join(", ".join(names) for names in heldout.values())
        lines.append(
            f"The runs have different held-out data ({groups}). Compare their figures only within a group, or "
            "compare the models on the same prompts: prefine evaluate."
        )
    return lines
