"""`prefine cache`: what prefine keeps because it can be made again, and how to remove it."""

from __future__ import annotations

from typing import Annotated

import typer

from prefine.cli.options import AsJson
from prefine.terminal import echo


def show(as_json: AsJson = False) -> None:
    """Show where the cache is and what is in it: converted models and reference log-probabilities."""
    import json

    from prefine.runs.cache import cache_directory, cache_items

    items = cache_items()
    if as_json:
        told = [
            {"kind": item.kind, "name": item.path.name, "state": item.state, "bytes": item.size_bytes} for item in items
        ]
        echo(json.dumps({"folder": str(cache_directory()), "items": told}, indent=2))
        return
    echo(f"{cache_directory()} (another place: set PREFINE_CACHE)")
    for item in items:
        echo(f"{item.kind:<10} {_megabytes(item.size_bytes):>12}  {item.state:<9}  {item.path.name}")
    echo(f"{len(items)} in all, {_megabytes(sum(item.size_bytes for item in items))}")


def clean(
    damaged: Annotated[
        bool, typer.Option("--damaged", help="Remove only what is damaged or was left by killed processes.")
    ] = False,
) -> None:
    """Remove what is in the cache, and no file of another origin; what is needed again is made again."""
    from prefine.runs.cache import cache_items, remove_cache_item

    items = [item for item in cache_items() if not (damaged and item.state == "whole")]
    removed = [item for item in items if remove_cache_item(item)]
    echo(f"{len(removed)} removed, {_megabytes(sum(item.size_bytes for item in removed))}")
    for item in items:
        if item not in removed:
            echo(f"{item.path.name} is being made by another process, or may be, and stays")


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f} MB"
