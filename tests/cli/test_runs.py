"""`prefine runs` lists runs with their stage, status and result, and loads no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prefine.cli.app import main
from prefine.runs.cache import MARKER
from tests.pipeline.conftest import desk as desk
from tests.pipeline.fake import Desk


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("PREFINE_CACHE", str(folder))
    return folder


def a_run(folder: Path, started: str, status: str = "finished", **manifest: Any) -> Path:
    folder.mkdir(parents=True)
    whole = {"stage": "sft", "status": status, "started": started, **manifest}
    (folder / "manifest.json").write_text(json.dumps(whole))
    rows = [{"kind": "heldout", "step": step, "loss": loss} for step, loss in ((0, 2.5), (8, 2.0))]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    with pytest.raises(SystemExit) as left:
        main(["runs", *arguments])
    assert left.value.code in (0, None)
    said = capsys.readouterr()
    return said.out, said.err


def test_runs_are_listed_the_latest_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a_run(tmp_path / "old", "2026-01-01T00:00:00")
    a_run(tmp_path / "more" / "new", "2026-02-01T00:00:00", status="stopped")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text('{"name": "of another program"}')
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "manifest.json").write_text("{")
    out, err = listed(capsys, str(tmp_path))
    first, second = out.splitlines()
    assert first.startswith(str(tmp_path / "more" / "new")) and "sft" in first and "stopped" in first
    assert (
        second.startswith(str(tmp_path / "old")) and "finished" in second and "12.2 before and is 7.4" in second
    )  # exp(2.5), exp(2)
    assert err.startswith(f"left out: {tmp_path / 'broken' / 'manifest.json'}")
    found = json.loads(listed(capsys, str(tmp_path), "--json")[0])
    assert [(row["run"], row["stage"]) for row in found] == [
        (str(tmp_path / "more" / "new"), "sft"),
        (str(tmp_path / "old"), "sft"),
    ]


def test_a_folder_without_runs_and_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert listed(capsys, str(tmp_path))[0] == f"no run in {tmp_path}\n"
    with pytest.raises(SystemExit) as left:
        main(["runs", str(tmp_path / "none")])
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: there is no folder {tmp_path / 'none'}. ")


def test_listing_loads_no_torch(tmp_path: Path) -> None:
    a_run(tmp_path / "one", "2026-01-01T00:00:00")
    code = f"""
import sys
from prefine.cli.app import main
try:
    main(["runs", {str(tmp_path)!r}])
except SystemExit:
    assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "sft" in done.stdout, done.stderr


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str, str]:
    """Exit code, output and errors of a verb of runs."""
    with pytest.raises(SystemExit) as left:
        main(["runs", *arguments])
    shown = capsys.readouterr()
    return left.value.code or 0, shown.out, shown.err


def test_tags_are_shown_and_filter_the_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = a_run(tmp_path / "one", "2026-01-01T00:00:00")
    a_run(tmp_path / "two", "2026-02-01T00:00:00")
    assert said(capsys, "tag", str(one), "best", "v2") == (0, f"{one}: best v2\n", "")
    assert said(capsys, "tag", str(one), "--remove", "v2")[1] == f"{one}: best\n"
    out = listed(capsys, str(tmp_path), "--tag", "best")[0]
    assert len(out.splitlines()) == 1 and "[best] " in out
    assert listed(capsys, str(tmp_path), "--tag", "none")[0] == f"no run in {tmp_path} has the tag none\n"


def test_two_runs_are_compared_as_a_table_or_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = a_run(tmp_path / "one", "2026-01-01T00:00:00", recipe={"training": {"seed": 0}})
    two = a_run(tmp_path / "two", "2026-02-01T00:00:00", recipe={"training": {"seed": 7}})
    code, out, _ = said(capsys, "compare", str(one), str(two))
    assert code == 0 and "training.seed" in out and "Perplexity" in out
    found = json.loads(said(capsys, "compare", str(one), str(two), "--json")[1])
    assert found["two"]["recipe"] == {"training.seed": "7"}


def test_a_run_is_removed_only_when_that_was_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = a_run(tmp_path / "one", "2026-01-01T00:00:00", prefine="0.1.0", recipe={})
    code, _, err = said(capsys, "remove", str(one))
    assert (code, err) == (2, "error: nothing is removed: there is no terminal to ask at. Add --yes.\n")
    assert one.exists()
    assert said(capsys, "remove", str(one), "--yes")[1].startswith(f"removed {one}, ")
    assert not one.exists()


def test_reproduce_of_the_current_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(a_run(tmp_path / "mine", "2026-01-01T00:00:00", recipe={"model": {"name": "no-such-model"}}))
    out, _ = listed(capsys, "reproduce", ".")
    assert out.startswith("# prefine sft mine.yaml\n")
    assert f"run: {tmp_path / 'mine-again'}" in out


def test_what_else_takes_disk_space_is_listed_and_removed(
    desk: Desk, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    desk.run()
    aside = Path("out/.pipeline/old/dpo.1")
    aside.mkdir(parents=True)
    (aside / ".lock").write_text("prefine run")
    (aside / "weights").write_bytes(b"x" * 2_500_000)
    entry = own_cache / "reference" / ("0" * 40)
    entry.mkdir(parents=True)
    (entry / MARKER).write_bytes(b"x" * 1_500_000)
    lines = listed(capsys, ".")[0].splitlines()
    shown = {line.split()[0]: line for line in lines[1:-1]}
    assert lines[0] == "no run in ." and set(shown) == {"out/all", "out/better", "out/served", "out"}
    assert shown["out/better"].split() == ["out/better", "evaluate", "done", "0.0", "MB"]
    assert shown["out"].split()[1:5] == ["pipeline", "desk", "2.5", "MB,"]
    assert shown["out"].endswith(", 2.5 MB of it set aside: prefine runs remove out/.pipeline/old")
    assert lines[-1] == "the cache holds 1.5 MB: prefine cache clean"
    assert listed(capsys, ".", "--tag", "best")[0] == "no run in . has the tag best\n"
    assert json.loads(listed(capsys, ".", "--json")[0]) == []
    assert said(capsys, "remove", "out/.pipeline/old", "--yes")[1] == "removed out/.pipeline/old, 2.5 MB\n"
    assert not Path("out/.pipeline/old").exists()
    assert said(capsys, "remove", "out", "--yes")[:2] == (0, "removed out, 0.0 MB\n")
    assert not Path("out").exists() and Path("pairs.jsonl").exists()
