"""prefine runs: list, compare, tag, remove and reproduce runs; what else takes disk space."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prefine.cli.options import AsJson
from prefine.terminal import echo, visible

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, as in runs/dpo.", show_default=False)]
RunPaths = Annotated[
    list[Path], typer.Argument(metavar="RUN", help="Runs' folders, as in runs/dpo.", show_default=False)
]


def list_(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of the runs.")] = Path("runs"),
    tag: Annotated[str | None, typer.Option(metavar="TAG", help="Only runs with this tag.")] = None,
    as_json: AsJson = False,
) -> None:
    """List runs, newest first: stage, status, tags and main result; then what else takes disk space: evaluations and
    exports of pipelines, results that these have set aside, the cache.
    """
    import json

    from prefine.errors import CheckpointError
    from prefine.run import find_runs
    from prefine.runs.tags import tags_of

    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {folder}", "Name the folder that your runs are in.")
    found, unreadable = find_runs(folder)
    rows = [(run, tags) for run in found for tags in [tags_of(run.path)] if tag is None or tag in tags]
    if as_json:
        told = [
            {
                "run": str(run.path),
                "stage": run.stage,
                "status": run.status,
                "tags": tags,
                "result": run.result,
                "figures": run.figures(),
            }
            for run, tags in rows
        ]
        echo(json.dumps(told, indent=2))
    else:
        widest = max((len(str(run.path)) for run, _ in rows), default=0)
        for run, tags in rows:
            words = f"[{' '.join(tags)}] " if tags else ""
            echo(visible(f"{run.path!s:<{widest}}  {run.stage:<6}  {run.status:<8}  {words}{run.result}"))
        if not rows:
            echo(visible(f"no run in {folder}" if tag is None else f"no run in {folder} has the tag {tag}"))
        if tag is None:
            _show_others(folder)
    for error in unreadable:
        echo(visible(f"left out: {error}"), err=True)


def _show_others(folder: Path) -> None:
    from prefine.formatting import megabytes
    from prefine.history.results import other_results
    from prefine.runs.cache import cache_size

    others, cache = other_results(folder), cache_size()
    widest = max((len(str(each.path)) for each in others), default=0)
    for each in others:
        line = f"{each.path!s:<{widest}}  {each.kind:<8}  {each.status:<8}  {megabytes(each.size_bytes)}"
        if each.set_aside is not None:
            line += f", {megabytes(each.set_aside_bytes)} of it set aside: prefine runs remove {each.set_aside}"
        echo(visible(line))
    if cache:
        echo(f"the cache holds {megabytes(cache)}: prefine cache clean")


def compare(runs: RunPaths, as_json: AsJson = False) -> None:
    """Show the figures of two runs or more side by side, and the fields in which their recipes differ."""
    import json

    from prefine.history.comparison import compare_runs

    found = compare_runs(runs)
    if as_json:
        echo(json.dumps(found.as_json(), indent=2, ensure_ascii=False))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for number, name in enumerate(("", *found.names)):
        table.add_column(Text(visible(name)), overflow="fold", style="cyan" if number == 0 else "")
    for place, (name, values) in enumerate(found.rows):
        if place == found.figures:
            table.add_section()
        table.add_row(*(Text(visible(each)) for each in (name, *values)))
    Console(highlight=False).print(table)
    if len(found.rows) == found.figures:
        echo("The recipes are the same.")


def tag(
    run: RunPath,
    tags: Annotated[
        list[str] | None, typer.Argument(metavar="TAG", help="Words to add; none shows the run's tags.")
    ] = None,
    remove: Annotated[list[str] | None, typer.Option(metavar="TAG", help="A tag to remove. Repeatable.")] = None,
) -> None:
    """Add and remove tags of a run; prefine runs --tag finds them."""
    from prefine.runs.tags import change_tags

    found = change_tags(run, tags or [], remove or [])
    echo(visible(f"{run}: {' '.join(found) or 'no tags'}"))


def remove(
    results: Annotated[
        list[Path],
        typer.Argument(
            metavar="FOLDER",
            help="Runs, evaluations, exports, pipelines, or what a pipeline has set aside, as prefine runs lists them.",
            show_default=False,
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Also what runs were made from.")] = False,
) -> None:
    """Delete runs, other results or whole pipelines, with all their files. Refuses what runs were made from."""
    import sys

    from prefine.errors import CheckpointError
    from prefine.formatting import megabytes
    from prefine.history.removal import remove_results
    from prefine.history.results import kind_of

    kinds = [kind_of(each) for each in results]
    if not yes:
        if not sys.stdin.isatty():
            raise CheckpointError("nothing is removed: there is no terminal to ask at", "Add --yes.")
        names = ", ".join(f"the {kind} {each}" for kind, each in zip(kinds, results, strict=True))
        if not typer.confirm(visible(f"Delete {names}?")):
            echo("nothing is removed")
            return
    for each, size in remove_results(results, force=force):
        echo(visible(f"removed {each}, {megabytes(size)}"))


def reproduce(
    run: RunPath,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the recipe here; else it is printed.")] = None,
) -> None:
    """Write the recipe and the command that make a run again, and say what differs now: data, model, versions."""
    from prefine.history.reproduction import commented, reproduction_of
    from prefine.paths import named
    from prefine.runs.atomic import require_writable, write_text

    place = named(run)
    file = out or Path(f"{place.name}.yaml")
    if out is not None:
        require_writable(out)
    made = reproduction_of(run, file, place.parent / f"{place.name}-again")
    if out is None:
        echo(visible(commented(made, run)).rstrip("\n"))
        return
    write_text(out, commented(made, run))
    for each in made.differences:
        echo(visible(f"differs: {each}"))
    echo(visible(f"to make it again: {made.command}"))
