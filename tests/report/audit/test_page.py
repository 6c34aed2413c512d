"""The page of an audit: all findings on it, hostile texts as text, no files of others overwritten."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefine.data.audit.result_file import audit_json
from prefine.errors import CheckpointError
from prefine.report.audit.page import require_audit_folder, write_audit
from tests.data.audit.writing import audited, pair

HOSTILE = "<script>alert(1)</script> ﷽ \u202e"


def page_of(tmp_path: Path) -> str:
    rows = [pair(n, category="a" if n % 2 else HOSTILE) for n in range(30)]
    rows += [pair(1) | {"prompt": HOSTILE}, pair(1) | {"prompt": HOSTILE}, pair(2)]
    return write_audit(audit_json(audited(tmp_path, rows)), tmp_path / "out").read_text(encoding="utf-8")


def test_all_findings_are_on_the_page(tmp_path: Path) -> None:
    html = page_of(tmp_path)
    held = json.loads((tmp_path / "out" / "audit.json").read_text())
    for finding in held["findings"]:
        assert finding["title"] in html
    assert f"{tmp_path}/rows.jsonl:32 ↔ {tmp_path}/rows.jsonl:31" in html
    assert "2 records repeat an earlier one exactly." in html or "1 record repeats" in html


def test_texts_of_the_data_stay_text(tmp_path: Path) -> None:
    html = page_of(tmp_path)
    assert "<script" not in html and "&lt;script&gt;alert(1)" in html and "\u202e" not in html
    assert "default-src 'none'" in html


def test_the_same_audit_gives_the_same_page(tmp_path: Path) -> None:
    held = audit_json(audited(tmp_path, [pair(1), pair(1)]))
    first = write_audit(held, tmp_path / "out").read_bytes()
    require_audit_folder(tmp_path / "out")
    assert (
        write_audit(json.loads((tmp_path / "out" / "audit.json").read_text()), tmp_path / "out").read_bytes() == first
    )


@pytest.mark.parametrize("name", ["audit.json", "audit.html"])
def test_files_of_others_are_kept(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(CheckpointError, match="was not written by prefine"):
        require_audit_folder(tmp_path)
