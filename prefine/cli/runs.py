"""prefine runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prefine.cli.options import AsJson
from prefine.terminal import echo, visible


def runs(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of the runs.")] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """List runs, newest first: stage, status and main result."""
    import json

    from prefine.errors import CheckpointError
    from prefine.run import find_runs

    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {folder}", "Name the folder that your runs are in.")
    found, unreadable = find_runs(folder)
    if as_json:
        told = [
            {
                "run": str(run.path),
                "stage": run.stage,
                "status": run.status,
                "result": run.result,
                "figures": run.figures(),
            }
            for run in found
        ]
        echo(json.dumps(told, indent=2))
    else:
        widest = max((len(str(run.path)) for run in found), default=0)
        for run in found:
            echo(visible(f"{run.path!s:<{widest}}  {run.stage:<6}  {run.status:<8}  {run.result}"))
        if not found:
            echo(f"no run in {folder}")
    for error in unreadable:
        echo(visible(f"left out: {error}"), err=True)
