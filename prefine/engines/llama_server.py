"""llama.cpp's server: the flags that a GGUF file needs. Where llama.cpp is: prefine.engines.llama_cpp."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prefine.engines.process import Command
from prefine.engines.target import Target


def llama_server_command(
    program: Path, target: Target, host: str, port: int, api_key: str | None, context: int | None, more: Sequence[str]
) -> Command:
    """The command that serves a GGUF file with llama-server on this address. The chat template is the file's own.

    Args:
        context: the longest sequence in tokens, the model's own if None.
        more: arguments that the user adds; they come last, so they count.
    """
    flags = [
        "--model",
        target.model,
        "--alias",
        target.name,
        "--host",
        host,
        "--port",
        str(port),
        "--jinja",
        "--metrics",
    ]
    if context is not None:
        flags += ["--ctx-size", str(context)]
    # As variables, since older releases refuse flags that they do not know.
    variables = {"LLAMA_ARG_OFFLINE": "1", "LLAMA_ARG_CORS_ORIGINS": "localhost"}
    if api_key is not None:
        variables["LLAMA_API_KEY"] = api_key
    unset = () if api_key is not None else ("LLAMA_API_KEY",)
    return Command("llama.cpp", [str(program), *flags, *more], variables, unset)
