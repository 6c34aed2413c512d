"""prefine report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, as in runs/dpo.")],
) -> None:
    """Write a run's report.html again from its files, also while it is still running."""
    from prefine.evaluation.report import write_report

    typer.echo(write_report(run))
