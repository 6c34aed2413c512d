"""A pipeline whose stages only write files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipeline.fake import Desk


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """See Desk."""
    return Desk(tmp_path, monkeypatch)
