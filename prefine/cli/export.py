"""prefine export: write a model in a format that others load, and verify one that was written."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefine.cli.options import AsJson
from prefine.terminal import echo, visible

if TYPE_CHECKING:
    from prefine.export.run_export import Exported

_SECONDS_BETWEEN_LINES = 15.0


def write(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A run (runs/NAME), a folder, a hub id or embedded:….", show_default=False
        ),
    ],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="FORMAT",
            help="adapter, merged, or another of docs/export.md; types after a colon.",
            show_default=False,
        ),
    ],
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE", help="Of saved weights: float32, bfloat16 or float16; else as the base is stored."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="NEW", help="A new folder; else export/FORMAT in the run's folder.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Keep an export that is not what was trained; it is marked so.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a model in a format that others load, load it as they do, and compare it with what was trained."""
    from prefine.export.run_export import export_run

    with _shown() as progress:
        exported = export_run(model, to, out=out, dtype=dtype, force=force, progress=progress)
    _print(exported, as_json)
    if not as_json:
        for failure in exported.failures:
            echo(visible(f"warning: kept with --force: {failure}"), err=True)
        echo(visible(f"done: {exported.folder}, proven" if not exported.failures else f"done: {exported.folder}"))


def verify(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="That prefine export wrote.", show_default=False)],
    run: Annotated[
        str | None, typer.Option(metavar="MODEL", help="What it was exported from, if that has moved.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check the files of an export, load it as its users do, and compare it with what was trained."""
    from prefine.errors import ModelError
    from prefine.export.run_export import verify_export

    with _shown() as progress:
        exported = verify_export(folder, run, progress)
    _print(exported, as_json)
    if exported.failures:
        raise ModelError(f"{folder} is not what was trained: {'; '.join(exported.failures)}", "Export the run again.")
    if not as_json:
        echo(visible(f"{folder}: all files are as they were written, and it is what was trained"))


def _print(exported: Exported, as_json: bool) -> None:
    import json

    if as_json:
        echo(json.dumps({"folder": str(exported.folder), **exported.values}, indent=2, ensure_ascii=False))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # A column for each artefact: a terminal is seldom as wide as all that is compared.
    header, *rows = exported.table
    table = Table(box=box.SIMPLE_HEAD)
    for number, name in enumerate((header[0], *(row[0] for row in rows))):
        table.add_column(Text(visible(name)), overflow="fold", style="cyan" if number == 0 else "")
    for place, what in enumerate(header[1:], start=1):
        table.add_row(what, *(Text(visible(row[place])) for row in rows))
    Console(highlight=False).print(table)
    for proof in exported.values["proof"][:1]:
        for sample in proof.get("samples", ())[:2]:
            for name in ("prompt", "run", "export"):
                echo(visible(f"{name:>7}: {' '.join(sample[name].split())}"))


@contextmanager
def _shown(clock: Callable[[], float] = time.monotonic) -> Iterator[Callable[[str, int, int], None]]:
    """Progress of an export on standard error: a bar on a terminal, a line now and then in a log."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(clock)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        tasks = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield show


def _lines(clock: Callable[[], float]) -> Callable[[str, int, int], None]:
    latest = clock()

    def say(what: str, done: int, total: int) -> None:
        nonlocal latest
        if clock() - latest >= _SECONDS_BETWEEN_LINES:
            latest = clock()
            echo(f"{what}: {done} of {total}", err=True)

    return say
