"""A page that is to be written replaces its older self, and nobody else's file."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefine.errors import CheckpointError
from prefine.ownership import MARK, refuse_foreign_file


@pytest.mark.parametrize("name", ["report.html", "readiness.html", "readiness.json"])
def test_only_what_prefine_wrote_is_replaced(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    refuse_foreign_file(path)
    path.write_text('{"verdict": "go"}' if name.endswith("json") else '<meta name="generator" content="prefine">')
    refuse_foreign_file(path)
    path.write_text("<p>my own page")
    with pytest.raises(CheckpointError, match=rf"{name} was not written by prefine\. Move it away"):
        refuse_foreign_file(path)
    (tmp_path / ".lock").write_bytes(MARK)
    refuse_foreign_file(path)
