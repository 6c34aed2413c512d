"""prefine report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prefine.terminal import echo


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, as in runs/dpo.")],
) -> None:
    """Write a run's report.html again from its files, also while it is still running."""
    from prefine.report.page import write_report

    echo(write_report(run))
