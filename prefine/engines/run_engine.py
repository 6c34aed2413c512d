"""`prefine serve --engine`: another server in front of the user, on our address, for as long as we run."""

from __future__ import annotations

import platform
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from prefine.engines.llama_cpp import SERVER, find_llama_cpp
from prefine.engines.llama_server import llama_server_command
from prefine.engines.process import Command, EngineProcess, Listening
from prefine.engines.target import Target, gguf_target, transformers_target
from prefine.engines.vllm import find_vllm, require_instructions, vllm_command
from prefine.errors import EngineError, RecipeError
from prefine.terminal import echo
from prefine.web.policy import access_policy

ENGINES = ("vllm", "llama.cpp")
_SECONDS_BETWEEN_LINES = 10.0
_WAKE_S = 0.2
# What a server on all addresses is reached at from this machine.
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - read, not listened on


def run_engine(
    engine: str,
    names: Sequence[str],
    *,
    host: str,
    port: int,
    api_key: str | None,
    slots: int | None = None,
    context: int | None = None,
    more: Sequence[str] = (),
    start_timeout_s: float = 900.0,
) -> int:
    """Start an engine on a model, wait until it answers, and go on until it ends or this process is asked to stop.

    The engine's log goes to standard error. Call this in the main thread.

    Args:
        engine: "vllm" or "llama.cpp".
        names: runs, folders or files to serve.
        port: 0 takes a free one.
        api_key: what clients must send, None for none.
        slots: answers that are generated at once, the engine's own choice if None.
        context: the longest sequence in tokens, the model's own if None.
        more: further arguments for the engine.
        start_timeout_s: how long loading may take.

    Returns: the exit code, 0: it was asked to stop.

    Raises:
        AccessError: other machines can reach the host, and there is no API key.
        EngineError: it does not start or ends by itself, or the port is taken.
        ModelError: it cannot serve that model.
        MissingDependencyError: it is not on this machine.
    """
    access_policy(host, api_key)
    port = _free(host, port)
    command, target = engine_command(engine, names, Listening(host, port, api_key, slots, context, more))
    with _stop_signals() as asked, EngineProcess(command, lambda line: _show(engine, line)) as running:
        reached = _ANY_ADDRESS.get(host, host)
        echo(f"starting {command.engine} for {target.model}", err=True)
        if running.wait_until_ready(reached, port, start_timeout_s, asked, _progress(command.engine)):
            called = ", ".join(adapter.name for adapter in target.adapters) or target.name
            echo(f"{command.engine} serves {called} at http://{_in_url(reached)}:{port}/v1", err=True)
        while not asked():
            if running.exit_code() is not None:
                raise running.death("while it served")
            time.sleep(_WAKE_S)
        echo(f"stopping {command.engine}", err=True)
    return 0


def engine_command(engine: str, names: Sequence[str], at: Listening) -> tuple[Command, Target]:
    """The command that run_engine starts, and what it serves; arguments and errors as there."""
    if engine == "llama.cpp":
        program = find_llama_cpp().require(SERVER)
        target = gguf_target(names)
        return llama_server_command(program, target, at), target
    if engine != "vllm":
        raise RecipeError(f"{engine!r} is not an engine", f"Choose one of {', '.join(ENGINES)}.", field="--engine")
    vllm = find_vllm()
    if vllm.on_cpu:
        from prefine.models.loading.device import cpu_instructions

        require_instructions(vllm, platform.machine(), cpu_instructions()[0])
    target = transformers_target(names)
    return vllm_command(vllm, target, at), target


def _free(host: str, port: int) -> int:
    """A port that nobody listens on: what answers there would be taken for the engine. 0 becomes a free one."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            found: int = probe.getsockname()[1]
            return found
    except OSError as error:
        raise EngineError(
            f"{_in_url(host)}:{port} cannot be listened on: {error.strerror or error}",
            "Choose another --port or --host.",
        ) from None


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _show(engine: str, line: str) -> None:
    sys.stderr.write(f"[{engine}] {line}\n")
    sys.stderr.flush()


def _progress(engine: str) -> Callable[[float], None]:
    """Says now and then that the engine is still loading."""
    latest = 0.0

    def told(seconds: float) -> None:
        nonlocal latest
        if seconds - latest >= _SECONDS_BETWEEN_LINES:
            latest = seconds
            echo(f"{engine} is loading: {seconds:.0f} seconds so far", err=True)

    return told


@contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """A function that says whether a signal has asked this process to stop."""
    asked = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        asked.set()

    hangup = getattr(signal, "SIGHUP", None)  # Windows has none; under nohup it is ignored, and stays so
    hangups = [] if hangup is None or signal.getsignal(hangup) is signal.SIG_IGN else [hangup]
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM, *hangups)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
