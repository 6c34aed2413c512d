"""vLLM and llama.cpp themselves, where they are: `prefine serve --engine` answers a request and stops with SIGTERM."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from prefine.engines.llama_cpp import SERVER, find_llama_cpp
from prefine.engines.vllm import find_vllm
from prefine.errors import PrefineError
from tests.engines.fake import free_port
from tests.export.real_gguf import make_gguf

_KEY = "a-key"


def answer_and_stop(tmp_path: Path, model: Path, engine: str, name: str) -> None:
    """Serve a model, ask it once with the key and once without, and stop it."""
    port = free_port()
    command = [sys.executable, "-m", "prefine", "serve", str(model), "--engine", engine, "--port", str(port)]
    environment = os.environ | {"PREFINE_API_KEY": _KEY}
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen([*command, "--context", "512"], stderr=log, env=environment) as serving,
    ):
        try:
            until = time.monotonic() + 300
            while not answers(port) and serving.poll() is None and time.monotonic() < until:
                time.sleep(0.2)
            said = chat(port, name, _KEY)
            assert said["choices"][0]["finish_reason"] in ("length", "stop"), (tmp_path / "log").read_text()
            with pytest.raises(urllib.error.HTTPError, match="401"):
                chat(port, name, "another")
        finally:
            serving.send_signal(signal.SIGTERM)
        assert serving.wait(60) == 0, (tmp_path / "log").read_text()
    assert not answers(port)


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def chat(port: int, name: str, key: str) -> Any:
    body = {"model": name, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - of this machine
        return json.load(answer)


@pytest.mark.slow
def test_llama_cpp_serves_a_gguf_file(tmp_path: Path, embedded_model: str) -> None:
    if SERVER not in find_llama_cpp().programs:
        pytest.skip("no llama-server: docs/deploy.md says how PREFINE_LLAMA_CPP comes to name one")
    answer_and_stop(tmp_path, make_gguf(tmp_path, embedded_model), "llama.cpp", "tiny-f16")


@pytest.mark.slow
def test_vllm_serves_a_folder(tmp_path: Path, embedded_model: str) -> None:
    try:
        find_vllm()
    except PrefineError as error:
        pytest.skip(f"{error}")
    make_gguf(tmp_path, embedded_model)
    answer_and_stop(tmp_path, tmp_path / "merged", "vllm", "merged")
