"""The flags of llama-server."""

from __future__ import annotations

from pathlib import Path

from prefine.engines.llama_server import llama_server_command
from prefine.engines.process import Listening
from prefine.engines.target import Target

TARGET = Target("dpo-q8_0", "/exports/dpo-q8_0.gguf")


def test_the_file_is_served_under_its_name_with_its_own_template() -> None:
    command = llama_server_command(
        Path("/b/llama-server"), TARGET, Listening("127.0.0.1", 8000, None, 4, 4096, ["--threads", "2"])
    )
    assert list(command.arguments) == [
        "/b/llama-server", "--model", "/exports/dpo-q8_0.gguf", "--alias", "dpo-q8_0", "--host", "127.0.0.1",
        "--port", "8000", "--jinja", "--metrics", "--ctx-size", "16384", "--parallel", "4", "--threads", "2",
    ]  # fmt: skip
    assert "LLAMA_API_KEY" in command.unset
    assert command.variables == {"LLAMA_ARG_OFFLINE": "1", "LLAMA_ARG_CORS_ORIGINS": "localhost"}


def test_the_key_is_in_the_environment_and_not_among_the_arguments() -> None:
    command = llama_server_command(Path("llama-server"), TARGET, Listening("::", 8000, "secret"))
    assert command.variables["LLAMA_API_KEY"] == "secret"
    assert not any("secret" in argument for argument in command.arguments)
