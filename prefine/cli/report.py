"""prefine report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prefine.terminal import echo


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, as in runs/dpo.")],
) -> None:
    """Rewrite a run's report.html from its files, also while the run is still going."""
    from prefine.report.page import write_report

    echo(write_report(run))
