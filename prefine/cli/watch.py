"""prefine watch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def watch(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, as in runs/dpo.")],
    once: Annotated[bool, typer.Option("--once", help="Show it once and end.")] = False,
) -> None:
    """Show a run in the terminal until it ends: progress, plots of its figures, held-out figures, guards, answers."""
    from rich.console import Console

    from prefine.watching.follow import follow

    follow(run, Console(), once=once)
