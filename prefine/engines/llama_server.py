"""llama.cpp's server: the flags that a GGUF file needs. Where llama.cpp is: prefine.engines.llama_cpp."""

from __future__ import annotations

from pathlib import Path

from prefine.engines.process import Command, Listening
from prefine.engines.target import Target


def llama_server_command(program: Path, target: Target, at: Listening) -> Command:
    """The command that serves a GGUF file with llama-server. The chat template is the file's own."""
    flags = ["--model", target.model, "--alias", target.name, "--host", at.host, "--port", str(at.port)]
    flags += ["--jinja", "--metrics"]
    if at.context is not None:
        # llama.cpp divides it by the sequences at once; ours is the longest one.
        flags += ["--ctx-size", str(at.context * (at.slots or 1))]
    if at.slots is not None:
        flags += ["--parallel", str(at.slots)]
    # As variables, since older releases refuse flags that they do not know.
    variables = {"LLAMA_ARG_OFFLINE": "1", "LLAMA_ARG_CORS_ORIGINS": "localhost"}
    if at.api_key is not None:
        variables["LLAMA_API_KEY"] = at.api_key
    unset = () if at.api_key is not None else ("LLAMA_API_KEY",)
    return Command("llama.cpp", [str(program), *flags, *at.more], variables, unset)
