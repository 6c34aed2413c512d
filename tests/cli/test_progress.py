"""What a log says of long work on rows."""

from __future__ import annotations

import pytest

from prefine.cli.progress import counting


def test_a_log_gets_a_line_a_minute(capsys: pytest.CaptureFixture[str]) -> None:
    times = iter([0.0, 10.0, 60.0, 60.0, 100.0, 130.0, 130.0])
    with counting("writing", lambda: next(times)) as progress:
        for rows in (10, 2000, 3000, 4000):
            progress(rows)
    said = capsys.readouterr()
    assert said.err.splitlines() == ["writing: 2,000 rows", "writing: 4,000 rows"]
    assert said.out == ""
