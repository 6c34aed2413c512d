"""Output that cannot be written ends a command in one line, or quietly where nobody reads it any more."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import pytest

from prefine.cli.app import main
from prefine.cli.output import say_error
from prefine.runs.cache import cache_entry

WORDS = "Größe “ж” 😀"


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A cache whose name needs more than latin-1, with one entry in it."""
    monkeypatch.setenv("PREFINE_CACHE", str(tmp_path / WORDS))
    cache_entry("models", "smollm2-135m-0123456789ab", lambda folder: (folder / "x").write_text("x"))  # type: ignore[arg-type, return-value]
    return {**os.environ, "PYTHONIOENCODING": "utf-8", "PYTHONUNBUFFERED": ""}


def prefine(*arguments: str, stdout: int | IO[Any], env: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "prefine", *arguments]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, env=env, check=False, timeout=60)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_is_one_line(unbuffered: str, environment: dict[str, str]) -> None:
    """Found at the first write, or at the last moment where the output fits a buffer."""
    with Path("/dev/full").open("wb") as full:
        done = prefine("cache", stdout=full, env=environment | {"PYTHONUNBUFFERED": unbuffered})
    assert done.returncode == 2
    assert done.stderr.decode() == (
        "error: standard output could not be written: No space left on device. Free some space there, "
        "or write to another place.\n"
    )


@pytest.mark.parametrize("arguments", [("cache",), ("cache", "--json"), ("--help",), ("--version",)])
def test_a_reader_that_has_left_is_no_error(arguments: tuple[str, ...], environment: dict[str, str]) -> None:
    """As in `prefine … | head -1`: quiet, with the exit code of a tool that SIGPIPE ends."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        done = prefine(*arguments, stdout=pipe, env=environment)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_characters_that_the_encoding_lacks_are_json_escapes(encoding: str, environment: dict[str, str]) -> None:
    """Rows written to such an output are still rows, with the same text."""
    done = prefine("cache", "--json", stdout=subprocess.PIPE, env=environment | {"PYTHONIOENCODING": encoding})
    assert done.returncode == 0, done.stderr
    assert "\\u0436" in done.stdout.decode(encoding)
    assert Path(json.loads(done.stdout.decode(encoding))["folder"]).name == WORDS


def test_a_closed_output_is_no_error(environment: dict[str, str]) -> None:
    done = subprocess.run(
        ["sh", "-c", f"'{sys.executable}' -m prefine cache >&-"], capture_output=True, env=environment, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_terminal_that_is_gone_takes_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing to it fails, and the exit code must still say how the command ended."""

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "stderr", Gone())
    say_error("interrupted")
    sys.stderr.write("and later ones vanish\n")
    assert not isinstance(sys.stderr, Gone)


def test_streams_are_as_before_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    import signal

    before = sys.stdout, signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit):
        main(["--version"])
    assert (sys.stdout, signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_ends_any_command_as_ctrl_c_does(name: str) -> None:
    """With what it had begun tidied up."""
    code = f"""
import os, signal, sys
from prefine.cli import app as module
import typer
module.app = typer.Typer(pretty_exceptions_enable=False)
@module.app.command()
def work():
    try:
        os.kill(os.getpid(), signal.{name})
        signal.pause()
    finally:
        print("tidied up")
module.main([])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr.strip()) == (130, "tidied up\n", "interrupted")


def test_an_ignored_hangup_stays_ignored() -> None:
    """As nohup asks for."""
    code = """
import os, signal, sys
from prefine.cli import app as module
import typer
module.app = typer.Typer(pretty_exceptions_enable=False)
@module.app.command()
def work():
    os.kill(os.getpid(), signal.SIGHUP)
    print("went on")
module.main([])
"""
    command = ["sh", "-c", 'trap \'\' HUP; exec "$0" -c "$1"', sys.executable, code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, "went on\n")


@pytest.mark.parametrize(
    "failure", ["PrefineError('it is broken', 'Mend it.')", "Stopped('stopped')", "ValueError('bug')"]
)
def test_one_process_of_a_launch_says_why(failure: str, tmp_path: Path) -> None:
    """All end with the same exit code; one message, or one traceback."""
    code = f"""
from prefine.cli import app as module
from prefine.errors import PrefineError, Stopped
import typer
module.app = typer.Typer(pretty_exceptions_enable=False)
@module.app.command()
def work():
    raise {failure}
module.main([])
"""
    codes, said = [], []
    for rank in range(3):
        (tmp_path / str(rank)).mkdir()
        launch = {"WORLD_SIZE": "3", "RANK": str(rank), "TORCHELASTIC_ERROR_FILE": str(tmp_path / str(rank) / "e.json")}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, **launch}
        )
        codes.append(done.returncode)
        said.append(done.stderr)
    assert len(set(codes)) == 1
    assert codes[0] != 0
    assert said[0].strip()
    assert said[1:] == ["", ""]
