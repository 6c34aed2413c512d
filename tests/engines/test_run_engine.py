"""`run_engine` from command to stop, with a stand-in for llama-server; and with the real one where it is installed."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from prefine.engines.run_engine import run_engine
from prefine.errors import EngineError, MissingDependencyError, RecipeError
from tests.engines.fake import fake_program, free_port


@pytest.fixture
def gguf(tmp_path: Path) -> str:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"GGUF")
    return str(path)


def stop_once_ready(port: int) -> threading.Thread:
    """Send this process SIGTERM as soon as something answers on a port."""

    def watch() -> None:
        until = time.monotonic() + 20
        while time.monotonic() < until:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.05)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def test_it_serves_until_a_signal_and_gives_0(
    tmp_path: Path, gguf: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    fake_program(tmp_path, "llama-server")
    monkeypatch.setenv("PREFINE_LLAMA_CPP", str(tmp_path))
    port, before = free_port(), signal.getsignal(signal.SIGTERM)
    stopper = stop_once_ready(port)
    assert run_engine("llama.cpp", [gguf], host="127.0.0.1", port=port, api_key=None) == 0
    stopper.join()
    assert signal.getsignal(signal.SIGTERM) is before
    log = capfd.readouterr().err
    assert f"starting llama.cpp for {gguf}" in log
    assert f"llama.cpp serves tiny at http://127.0.0.1:{port}/v1" in log
    assert "[llama.cpp] loading weights" in log
    assert "[llama.cpp] got SIGTERM" in log
    with socket.socket() as probe:  # nobody listens any more
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))


def test_an_engine_that_dies_is_one_error(tmp_path: Path, gguf: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "llama-server"
    program.write_text("#!/bin/sh\necho 'error: unknown model architecture'\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PREFINE_LLAMA_CPP", str(tmp_path))
    with pytest.raises(
        EngineError, match=r"ended with exit code 1 before it was ready \(its last lines: error: unknown"
    ):
        run_engine("llama.cpp", [gguf], host="127.0.0.1", port=free_port(), api_key=None)


def test_a_port_in_use_is_refused_before_anything_starts(
    tmp_path: Path, gguf: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    fake_program(tmp_path, "llama-server")
    monkeypatch.setenv("PREFINE_LLAMA_CPP", str(tmp_path))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(EngineError, match=rf"127\.0\.0\.1:{port} cannot be listened on.*Choose another --port"):
            run_engine("llama.cpp", [gguf], host="127.0.0.1", port=port, api_key=None)
    assert "loading weights" not in capfd.readouterr().err


def test_an_unknown_engine_and_a_missing_one_are_refused(
    gguf: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=r"--engine: 'ollama' is not an engine. Choose one of vllm, llama.cpp"):
        run_engine("ollama", [gguf], host="127.0.0.1", port=1, api_key=None)
    monkeypatch.delenv("PREFINE_LLAMA_CPP", raising=False)
    monkeypatch.delenv("PREFINE_VLLM", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependencyError, match="vLLM was not found"):
        run_engine("vllm", [gguf], host="127.0.0.1", port=1, api_key=None)
