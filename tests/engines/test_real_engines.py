"""vLLM and llama.cpp themselves, where they are: `prefine serve --engine` answers a request and stops with SIGTERM."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from openai import AuthenticationError, OpenAI
from openai.types.chat import ChatCompletionUserMessageParam

from prefine.engines.llama_cpp import SERVER, find_llama_cpp
from prefine.engines.vllm import find_vllm
from prefine.errors import PrefineError
from tests.engines.fake import free_port
from tests.export.real_gguf import make_gguf

_KEY = "a-key"
_TURNS: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": "Hello"}]


def answer_and_stop(tmp_path: Path, model: Path, engine: str, name: str) -> None:
    """Serve a model, ask it with OpenAI's own client, whole and streaming, with a wrong key, and stop it."""
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
            with client(port, _KEY) as ours:
                assert name in [model.id for model in ours.models.list()], (tmp_path / "log").read_text()
                whole = ours.chat.completions.create(model=name, messages=_TURNS, max_tokens=4, temperature=0)
                assert whole.choices[0].finish_reason in ("length", "stop")
                assert whole.usage is not None and 1 <= whole.usage.completion_tokens <= 4
                parts = ours.chat.completions.create(
                    model=name, messages=_TURNS, max_tokens=4, temperature=0, stream=True
                )
                streamed = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
                assert streamed == (whole.choices[0].message.content or "")
            with client(port, "another") as wrong, pytest.raises(AuthenticationError):
                wrong.chat.completions.create(model=name, messages=_TURNS, max_tokens=4)
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


def client(port: int, key: str) -> OpenAI:
    return OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0, timeout=60)


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
