"""A pipeline whose stages only write files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipeline.fake import Desk


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """See Desk. There are no models whose memory could be given back, and looking for them takes longer than a test."""
    monkeypatch.setattr("prefine.pipeline.running._free_memory", lambda: None)
    return Desk(tmp_path, monkeypatch)
