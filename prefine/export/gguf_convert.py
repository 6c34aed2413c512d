"""Runs llama.cpp's converter, or auto-round's quantiser, in a process of its own: `python -m … JOB.json`.

Both patch and import as they like, and end the process when they meet what they do not know; see gguf.py for the job.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_BUNDLED = "auto_round.export.export_to_gguf"


def auto_round_installed() -> bool:
    """Whether auto-round is there; it is not imported."""
    return importlib.util.find_spec("auto_round") is not None


def bundled_converter() -> Path | None:
    """The folder around llama.cpp's `conversion` package in auto-round; None where that is not installed."""
    if (spec := importlib.util.find_spec("auto_round")) is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent.joinpath(*_BUNDLED.split(".")[1:])
    return folder if (folder / "conversion" / "__init__.py").is_file() else None


def convert(root: Path, folder: Path, name: str, files: Mapping[str, str]) -> None:
    """Write GGUF files of a transformers folder with llama.cpp's converter.

    Args:
        root: has the package `conversion`.
        folder: config, weights and tokenizer.
        name: of the model, for the files' headers.
        files: type (f32, f16, bf16, q8_0) -> path.
    """
    sys.path.insert(0, os.fspath(root))
    conversion: Any = importlib.import_module("conversion")
    import gguf
    import torch

    kinds = {
        "f32": gguf.LlamaFileType.ALL_F32,
        "f16": gguf.LlamaFileType.MOSTLY_F16,
        "bf16": gguf.LlamaFileType.MOSTLY_BF16,
        "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    }
    with torch.inference_mode():
        settings = conversion.ModelBase.load_hparams(folder, False)
        model = conversion.get_model_class(conversion.get_model_architecture(settings, conversion.ModelType.TEXT))
        for kind, path in files.items():
            model(folder, kinds[kind], Path(path), model_name=name).write()


def quantise(folder: Path, files: Mapping[str, str]) -> None:
    """Write GGUF files of K-quant types with auto-round, rounded to the nearest without calibration.

    Args:
        folder: as in `convert`.
        files: type -> path.
    """
    auto_round: Any = importlib.import_module("auto_round")
    for kind, path in files.items():
        with tempfile.TemporaryDirectory(dir=Path(path).parent) as out:
            rounder = auto_round.AutoRound(
                os.fspath(folder), scheme=f"GGUF:{kind.upper()}", iters=0, disable_opt_rtn=True, device_map="cpu"
            )
            rounder.quantize_and_save(out, format=f"gguf:{kind}")
            (made,) = Path(out).rglob("*.gguf")
            shutil.move(made, path)


def main(arguments: Sequence[str]) -> None:
    """Do what a job says, a JSON object: `folder`, `name`, `root`, `convert` and `quantise` (type -> path)."""
    job = json.loads(Path(arguments[0]).read_text("utf-8"))
    folder = Path(job["folder"])
    if job["convert"]:
        convert(Path(job["root"]), folder, job["name"], job["convert"])
    if job["quantise"]:
        quantise(folder, job["quantise"])


if __name__ == "__main__":
    main(sys.argv[1:])
