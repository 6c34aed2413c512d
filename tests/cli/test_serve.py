"""`prefine serve`: what cannot be is refused in one line before a model is loaded, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefine.cli.app import main


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--feedback", "bad.db"], "bad.db: is not a SQLite database"),
        (["--feedback", "none/feedback.db"], "there is no folder none"),
        (["--redact-pattern", "("], "--redact-pattern is '(', which is not a regular expression"),
        (["--retention-days", "0"], "--retention-days"),
        ([], "./none"),
    ],
)
def test_feedback_that_cannot_be_kept_is_refused_first(
    words: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.db").write_text("not a database")
    with pytest.raises(SystemExit) as leaving:
        main(["serve", "./none", "--port", "0", *words])
    shown = capsys.readouterr()
    assert leaving.value.code == 2 and shown.out == ""
    assert shown.err.startswith("error: ") and told in shown.err and shown.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["bad.db"]
