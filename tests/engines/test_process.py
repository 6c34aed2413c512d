"""An engine as a process: it is waited for, its log is forwarded, and nothing of it is left when we stop or die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from prefine.engines.process import Command, EngineProcess
from prefine.errors import EngineError
from tests.engines.fake import fake_engine, free_port


def running(
    port: int, say: Callable[[str], None] = lambda line: None, grace_s: float = 5.0, **options: str
) -> EngineProcess:
    return EngineProcess(fake_engine(port, **options), say, grace_s)


def gone(pid: int, seconds: float = 5.0) -> bool:
    """Whether a process ends within so many seconds; a zombie has ended."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


def test_an_engine_is_ready_when_its_health_path_answers_200_and_its_log_is_forwarded() -> None:
    port, lines = free_port(), list[str]()
    with running(port, lines.append, loading="0.3") as engine:
        waited: list[float] = []
        assert engine.wait_until_ready("127.0.0.1", port, 20, progress=waited.append)
        assert waited and waited == sorted(waited)
    assert lines[:2] == ["loading weights", "503 while loading"]
    assert "got SIGTERM" in lines


def test_stopping_ends_what_the_engine_has_started_even_if_it_does_not_heed_sigterm() -> None:
    port, lines = free_port(), list[str]()
    with running(port, lines.append, grace_s=0.3, child="yes", deaf="yes") as engine:
        engine.wait_until_ready("127.0.0.1", port, 20)
        child = next(int(line.rpartition(" ")[2]) for line in lines if line.startswith("child "))
        assert psutil.pid_exists(child)
    assert gone(engine.pid)
    assert gone(child)


def test_an_engine_that_ends_while_loading_is_one_error_with_its_last_lines() -> None:
    port = free_port()
    with running(port, die="3") as engine, pytest.raises(EngineError) as raised:
        engine.wait_until_ready("127.0.0.1", port, 20)
    text = str(raised.value)
    assert "fake ended with exit code 3 before it was ready" in text
    assert "loading weights | no memory: \\x1b[31mred" in text  # control sequences of a log are shown, not obeyed
    assert len(raised.value.lines) == 1


def test_an_engine_that_is_killed_says_by_which_signal() -> None:
    port = free_port()
    with running(port) as engine:
        engine.wait_until_ready("127.0.0.1", port, 20)
        os.kill(engine.pid, signal.SIGKILL)
        assert gone(engine.pid)
        assert engine.exit_code() == -signal.SIGKILL
        assert "fake was killed by signal 9 while it served" in str(engine.death("while it served"))


def test_an_engine_that_never_answers_is_given_up() -> None:
    port = free_port()
    with running(port, loading="60") as engine, pytest.raises(EngineError, match="did not answer within 1 seconds"):
        engine.wait_until_ready("127.0.0.1", port, 0.6)
    assert gone(engine.pid)


def test_waiting_ends_when_the_user_stops() -> None:
    port = free_port()
    with running(port, loading="60") as engine:
        assert not engine.wait_until_ready("127.0.0.1", port, 20, stopped=lambda: True)


def test_a_program_that_is_not_there_is_an_error_with_its_name(tmp_path: Path) -> None:
    missing = str(tmp_path / "llama-server")
    with (
        EngineProcess(Command("llama.cpp", [missing]), lambda line: None) as engine,
        pytest.raises(EngineError, match=r"exit code 127.*No such file"),
    ):
        engine.wait_until_ready("127.0.0.1", free_port(), 20)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's death")
def test_an_engine_ends_when_we_are_killed(tmp_path: Path) -> None:
    port, note = free_port(), tmp_path / "pid"
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from prefine.engines.process import EngineProcess\n"
        "from tests.engines.fake import fake_engine\n"
        "port = int(sys.argv[1])\n"
        "engine = EngineProcess(fake_engine(port), lambda line: None)\n"
        "engine.wait_until_ready('127.0.0.1', port, 20)\n"
        "Path(sys.argv[2]).write_text(str(engine.pid))\n"
        "time.sleep(60)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    ours = subprocess.Popen([sys.executable, "-c", code, str(port), str(note)], env=environment)
    try:
        until = time.monotonic() + 30
        while not (note.is_file() and note.read_text()) and time.monotonic() < until:
            time.sleep(0.02)
        pid = int(note.read_text())
        assert psutil.pid_exists(pid)
    finally:
        ours.kill()
        ours.wait()
    assert gone(pid)


def test_of_a_progress_bar_the_end_is_forwarded_and_empty_lines_are_not() -> None:
    lines: list[str] = []
    code = r"print('\rloading 10%\rloading 100%\n\n  \ndone', end='')"
    command = Command("fake", [sys.executable, "-c", code])
    with EngineProcess(command, lines.append) as engine, pytest.raises(EngineError, match=r"loading 100% \| done"):
        engine.wait_until_ready("127.0.0.1", free_port(), 20)
    assert lines == ["loading 100%", "done"]


def test_variables_reach_the_engine_and_unset_ones_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OF_ANOTHER", "x")
    lines: list[str] = []
    code = "import os; print(os.environ.get('A_KEY'), os.environ.get('OF_ANOTHER'))"
    command = Command("fake", [sys.executable, "-c", code], {"A_KEY": "secret"}, ("OF_ANOTHER",))
    with EngineProcess(command, lines.append) as engine, pytest.raises(EngineError):
        engine.wait_until_ready("127.0.0.1", free_port(), 20)
    assert lines == ["secret None"]
