"""`prefine cache`: show and clear the cache."""

from __future__ import annotations

from typing import Annotated

import typer

from prefine.cli.options import AsJson
from prefine.terminal import echo


def show(as_json: AsJson = False) -> None:
    """Show the cache's folder and contents: converted models and reference log-probabilities."""
    import json

    from prefine.formatting import megabytes
    from prefine.runs.cache import cache_directory, cache_items

    items = cache_items()
    if as_json:
        told = [
            {"kind": item.kind, "name": item.path.name, "state": item.state, "bytes": item.size_bytes} for item in items
        ]
        echo(json.dumps({"folder": str(cache_directory()), "items": told}, indent=2))
        return
    echo(f"{cache_directory()} (set PREFINE_CACHE to use another folder)")
    for item in items:
        echo(f"{item.kind:<10} {megabytes(item.size_bytes):>12}  {item.state:<9}  {item.path.name}")
    echo(f"{len(items)} in all, {megabytes(sum(item.size_bytes for item in items))}")


def clean(
    damaged: Annotated[
        bool, typer.Option("--damaged", help="Remove only entries that are damaged or were left by killed processes.")
    ] = False,
) -> None:
    """Clear the cache. Entries are made again when needed; files that prefine did not write are kept."""
    from prefine.formatting import megabytes
    from prefine.runs.cache import cache_items, remove_cache_item

    items = [item for item in cache_items() if not (damaged and item.state == "whole")]
    removed = [item for item in items if remove_cache_item(item)]
    echo(f"{len(removed)} removed, {megabytes(sum(item.size_bytes for item in removed))}")
    for item in items:
        if item not in removed:
            echo(f"{item.path.name} is kept: another process may be writing it")
