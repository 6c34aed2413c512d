"""`prefine watch`, as a command without a terminal; it loads no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from prefine.cli.app import main
from tests.watching.conftest import Going


def test_once_without_a_terminal(tmp_path: Path) -> None:
    going = Going(tmp_path)
    going.write()
    going.step(1)
    code = f"""
import sys
from prefine.cli.app import main
try:
    main(["watch", {str(tmp_path)!r}, "--once"])
except SystemExit as left:
    assert not left.code and "torch" not in sys.modules and "matplotlib" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "step 1/40" in done.stdout, done.stderr
    assert "\x1b" not in done.stdout


def test_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["watch", str(tmp_path / "none")])
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'none'} holds no run to watch. ")
