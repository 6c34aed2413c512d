"""Columns named as people name them in spreadsheets: Prompt, CHOSEN, Response 1."""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache
from typing import Any

from prefine.data.convert import SHAPES

_GAPS = re.compile(r"[\s_-]+")


def with_known_names(value: dict[str, Any]) -> dict[str, Any]:
    """A row whose columns have the names that formats know, where only capitals, spaces or hyphens differ.

    A name is left as it is where another column has the known name already, or would get it as well.
    """
    renamed = _renamed(tuple(value))
    return {renamed.get(name, name): item for name, item in value.items()} if renamed else value


@lru_cache(maxsize=1_000)
def _renamed(names: tuple[str, ...]) -> dict[str, str]:
    """The columns to rename, with their known names."""
    meant = {name: _GAPS.sub("_", name.strip()).lower() for name in names}
    wanted = Counter(meant.values())
    return {
        name: known
        for name, known in meant.items()
        if name != known and known in _known_columns() and wanted[known] == 1 and known not in names
    }


@lru_cache(maxsize=1)
def _known_columns() -> frozenset[str]:
    shapes = [shape for shapes in SHAPES.values() for shape in shapes]
    return frozenset({"id", "system"}.union(*(set(shape.needs) | shape.may_have for shape in shapes)))
