"""`prefine report`: one run's page, or several runs on one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from prefine.cli.app import main
from tests.report.conftest import write_sft_run

Call = Callable[..., str]


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs the verb in a folder with two runs; returns what it said."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(write_sft_run(tmp_path / "a"), tmp_path / "b")

    def call(*arguments: str, code: int = 0) -> str:
        with pytest.raises(SystemExit) as left:
            main(["report", *arguments])
        assert (left.value.code or 0) == code
        said = capsys.readouterr()
        return said.err if code else said.out

    return call


def test_one_run(report: Call) -> None:
    assert report("a") == "a/report.html\n"
    assert report("a", "--out", "page.html") == "page.html\n"
    assert Path("page.html").read_bytes() == Path("a/report.html").read_bytes()


def test_several_runs(report: Call) -> None:
    assert report("a", "b") == "compared.html\n"
    assert report("a", "b", "--out", "two.html") == "two.html\n"
    assert Path("two.html").read_bytes() == Path("compared.html").read_bytes()
    assert not Path("a/report.html").exists()


def test_a_file_of_a_run_is_not_overwritten(report: Call) -> None:
    assert "a/manifest.json was not written by prefine" in report("b", "--out", "a/manifest.json", code=2)
    assert "--out a is a folder" in report("a", "b", "--out", "a", code=2)
    assert "is named twice" in report("a", "./a", code=2)
