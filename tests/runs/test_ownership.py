"""A page that is to be written replaces its older self, and nobody else's file."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefine.errors import CheckpointError
from prefine.runs.ownership import MARK, refuse_foreign_page


@pytest.mark.parametrize("mine", ["<p>my own page", "<p>prefine: what I found", '{"verdict": "go"}'])
def test_only_what_prefine_wrote_is_replaced(tmp_path: Path, mine: str) -> None:
    """A page that is about prefine is not from prefine."""
    path = tmp_path / "report.html"
    refuse_foreign_page(path)
    path.write_text('<head><meta name="generator" content="prefine"></head>')
    refuse_foreign_page(path)
    path.write_text(mine)
    with pytest.raises(CheckpointError, match=r"report\.html was not written by prefine\. Move it away"):
        refuse_foreign_page(path)
    (tmp_path / ".lock").write_bytes(MARK)
    refuse_foreign_page(path)
