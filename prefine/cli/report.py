"""prefine report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prefine.terminal import echo


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="A run's folder, as in runs/dpo; several are compared on one page."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where to write the page; default: the folder of one run, compared.html for several.",
        ),
    ] = None,
) -> None:
    """Rewrite a run's report.html from its files, also while the run is still going; or compare several runs."""
    from prefine.report.overview.page import require_page, write_overview
    from prefine.report.page import write_report

    if out is not None:
        require_page(out)
    if len(runs) == 1:
        echo(write_report(runs[0], out))
    else:
        echo(write_overview(runs, out or Path("compared.html")))
