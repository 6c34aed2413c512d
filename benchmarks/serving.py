"""Time an OpenAI-compatible server: tokens a second of many clients, waits of few, and a repeated prefix.

python -m benchmarks.serving ours|bare|transformers|vllm|llama.cpp [--requests 64] [--clients 1,8,32] [--dtype float32]

All servers get the same chats: short HH prompts, 64 tokens each at most, temperature 1, streamed. Tokens are counted as
the server reports them. `bare` generates the same requests without a server, in the writer that `ours` uses.

transformers needs its `serving` extra. vllm: PREFINE_VLLM names the interpreter of an environment that has it.
llama.cpp: PREFINE_LLAMA_CPP names its folder or llama-server, and --gguf a file of the embedded model in a type as wide
as --dtype.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.work import add_dtype, dtype_name, short_prompts, tell
from prefine.models.loading.embedded import embedded_folder

MODEL = "embedded:smollm2-135m"
NEW_TOKENS = 64
_START_SECONDS = 300.0
# Words of a system turn of about 1,000 tokens.
_LONG_SYSTEM_WORDS = 900


@dataclass(frozen=True)
class Timed:
    """One streamed answer: seconds to its first token, seconds in all, its tokens."""

    first_s: float
    total_s: float
    tokens: int

    @property
    def between_s(self) -> float:
        """Mean seconds from one token to the next."""
        return (self.total_s - self.first_s) / max(1, self.tokens - 1)


def chats(count: int) -> list[list[dict[str, str]]]:
    """Conversations of the benchmark, as OpenAI's API takes them."""
    return [[{"role": turn.role, "content": turn.content} for turn in row.prompt] for row in short_prompts(count)]


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def _ours(folder: Path, port: int, dtype: str, slots: int) -> list[str]:
    return [
        *(sys.executable, "-m", "prefine", "serve", MODEL, "--port", str(port)),
        *("--slots", str(slots), "--dtype", dtype, "--no-feedback"),
    ]


def _transformers(folder: Path, port: int, dtype: str, slots: int) -> list[str]:
    return [
        *(str(Path(sys.executable).with_name("transformers")), "serve", str(folder), "--continuous-batching"),
        *("--port", str(port), "--dtype", dtype, "--device", "cpu"),
    ]


def _vllm(folder: Path, port: int, dtype: str, slots: int) -> list[str]:
    return [
        *(os.environ["PREFINE_VLLM"], "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)),
        *("--port", str(port), "--dtype", dtype, "--max-num-seqs", str(slots), "--max-model-len", "2048"),
        "--enforce-eager",
    ]


def _llama_cpp(folder: Path, port: int, dtype: str, slots: int, gguf: str) -> list[str]:
    named = Path(os.environ["PREFINE_LLAMA_CPP"])
    found = named if named.is_file() else next(named.rglob("llama-server"), None) or shutil.which("llama-server")
    return [
        *(str(found), "--model", gguf, "--port", str(port), "--parallel", str(slots)),
        *("--ctx-size", str(2048 * slots), "--cont-batching", "--threads", str(os.cpu_count())),
    ]


@contextmanager
def served(command: Sequence[str], port: int) -> Iterator[str]:
    """A server started as a process; gives its address once it answers, and stops it at the end."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "2"}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env)
        try:
            address = f"http://127.0.0.1:{port}"
            until = time.monotonic() + _START_SECONDS
            while not _answers(address):
                if process.poll() is not None or time.monotonic() > until:
                    log.seek(0)
                    sys.exit(f"{' '.join(command)} did not start:\n{log.read()[-3000:]}")
                time.sleep(0.5)
            yield address
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def _answers(address: str) -> bool:
    try:
        return httpx.get(f"{address}/v1/models", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


async def _one(client: httpx.AsyncClient, model: str, messages: list[dict[str, str]], tokens: int) -> Timed:
    body = {
        "model": model,
        "messages": messages,
        "max_tokens": tokens,
        "temperature": 1.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    began = time.perf_counter()
    first, counted, chunks = None, None, 0
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        if answer.status_code != 200:
            sys.exit(f"status {answer.status_code}: {(await answer.aread())[:500]!r}")
        async for line in answer.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            chunk = json.loads(line[6:])
            if any(choice["delta"].get("content") for choice in chunk["choices"]):
                chunks += 1
                first = first or time.perf_counter()
            counted = (chunk.get("usage") or {}).get("completion_tokens", counted)
    ended = time.perf_counter()
    return Timed((first or ended) - began, ended - began, counted or chunks)


async def _all(address: str, model: str, asked: Sequence[Any], clients: int, tokens: int) -> tuple[list[Timed], float]:
    """Every conversation once, by so many clients at a time; and the seconds that all took."""
    waiting = list(reversed(asked))
    found: list[Timed] = []

    async def work(client: httpx.AsyncClient) -> None:
        while waiting:
            found.append(await _one(client, model, waiting.pop(), tokens))

    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=address, timeout=600, limits=limits) as client:
        began = time.perf_counter()
        await asyncio.gather(*(work(client) for _ in range(clients)))
        return found, time.perf_counter() - began


def measure(address: str, model: str, requests: int, clients: Sequence[int]) -> dict[str, object]:
    """Figures of a running server."""
    asked = chats(requests)
    asyncio.run(_all(address, model, asked[:2], 2, 4))  # what is made once is made
    done, seconds = asyncio.run(_all(address, model, asked, requests, NEW_TOKENS))
    result: dict[str, object] = {"tokens_per_s": sum(each.tokens for each in done) / seconds, "seconds": seconds}
    for count in clients:
        some, _ = asyncio.run(_all(address, model, asked[: max(4, count)], count, NEW_TOKENS))
        result[f"first_token_s_{count}"] = statistics.median(each.first_s for each in some)
        result[f"between_tokens_s_{count}"] = statistics.median(each.between_s for each in some)
    system = {"role": "system", "content": " ".join(f"rule{place % 10}" for place in range(_LONG_SYSTEM_WORDS))}
    for name, question in (("prefix_first_s", "What is a parcel?"), ("prefix_second_s", "What is a tree?")):
        ((one,), _) = asyncio.run(_all(address, model, [[system, {"role": "user", "content": question}]], 1, 2))
        result[name] = one.first_s
    return result


def bare(dtype: str, requests: int) -> dict[str, object]:
    """The same requests in the writer that the server uses."""
    from prefine.generation.engine import writer_for
    from prefine.generation.sampling import Sampling
    from prefine.generation.writer import Request
    from prefine.models.loading.load import load_model
    from prefine.recipe.sections import ModelSection

    loaded = load_model(ModelSection(dtype=dtype), None, trainable=False)
    prompts = [loaded.template.prompt_ids(row.prompt) for row in short_prompts(requests)]
    writer = writer_for(loaded.packed, loaded.tokenizer, requests)
    stops = loaded.template.stop_ids

    def write(some: list[list[int]], tokens: int) -> int:
        asked = (Request(prompt, Sampling(tokens, seed=place), stops) for place, prompt in enumerate(some))
        return sum(len(each.tokens) for each in writer.write(asked))

    write(prompts[:2], 4)
    began = time.perf_counter()
    tokens = write(prompts, NEW_TOKENS)
    seconds = time.perf_counter() - began
    return {"tokens_per_s": tokens / seconds, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("who", choices=["ours", "bare", "transformers", "vllm", "llama.cpp"])
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--clients", type=lambda text: [int(word) for word in text.split(",")], default=[1, 8, 32])
    parser.add_argument("--gguf", default="")
    add_dtype(parser)
    args = parser.parse_args()
    dtype, folder = dtype_name(args.dtype), embedded_folder(MODEL)
    if args.who == "bare":
        tell(bare(dtype, args.requests))
        return
    port = _free_port()
    if args.who == "llama.cpp":
        command = _llama_cpp(folder, port, dtype, args.requests, args.gguf)
    else:
        start = {"ours": _ours, "transformers": _transformers, "vllm": _vllm}[args.who]
        command = start(folder, port, dtype, args.requests)
    with served(command, port) as address:
        models = httpx.get(f"{address}/v1/models", timeout=30).json()["data"]
        model = str(folder) if args.who == "transformers" else models[0]["id"]
        tell(measure(address, model, args.requests, args.clients))


if __name__ == "__main__":
    main()
