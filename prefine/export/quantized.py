"""`--to gptq` and `--to awq`: 4-bit weights for GPU servers, made by auto-round and calibrated on the run's own rows.

Loading such weights with transformers on a CPU takes auto-round's kernels; the proof uses them. Servers on GPUs have
kernels of their own for the same files.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from prefine.data.tokens.store import TokenStore
from prefine.errors import MissingDependencyError, ModelError, RecipeError
from prefine.export.child import run_quietly
from prefine.export.formats import Artefact, ExportOptions, ProofLimits
from prefine.export.merged import require_room_for_merged
from prefine.export.reload import SAFELY, ForeignModel, TransformersModel
from prefine.export.room import require_disk
from prefine.export.source import ExportSource
from prefine.json_reading import read_json_object
from prefine.models.loading.device import choose_device, choose_dtype
from prefine.models.loading.weights import fetched_whole

_BITS = 4
# Of a weight in the files at most, on average, with scales and with embeddings that are not quantised.
_MOST_BYTES = 1
# Of what is not quantised (embeddings, norms); GPUs' kernels for these files compute in it.
_DTYPE = "float16"
# A group of this many weights has a scale of its own; smaller ones where a layer's inputs do not divide by it.
_GROUP_SIZES = (128, 64, 32)
_ROW_TOKENS, _FEWEST_ROWS = 512, 8
_SHORTEST_ROW = 64
# On a GPU auto-round learns how to round, in its default number of steps. A processor would take hours for that: there
# it searches for the scales alone, weighted by what the calibration rows put through each layer.
_ITERATIONS = {"cuda": 200, "cpu": 0}
_FORMATS = {"gptq": "auto_gptq", "awq": "auto_awq"}
_SEED = 0
_LIMITS = ProofLimits(top1=0.65, kl_mean=0.40, kl_p99=4.0, perplexity=0.50, kept=(0.6, 1.4))


class QuantizedFormat:
    """See prefine.export.formats.Format."""

    name: str
    library: str | None = "transformers"
    usage = (
        "On a GPU, vLLM takes the folder as it is (`vllm serve .`), and transformers loads it with gptqmodel. On any",
        "processor, transformers loads it with the kernels of auto-round:",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoRoundConfig, AutoTokenizer",
        "",
        'model = AutoModelForCausalLM.from_pretrained(".", quantization_config=AutoRoundConfig(), device_map="cpu")',
        'tokenizer = AutoTokenizer.from_pretrained(".")',
        "```",
    )
    symmetric: bool
    algorithms: tuple[str, ...]
    most_rows: int
    packages: Mapping[str, str]

    def require(self, source: ExportSource, options: ExportOptions) -> None:
        """See Format."""
        if options.types:
            raise RecipeError(
                f"--to is {self.name}:{','.join(options.types)}, and {self.name} has no types",
                f"Write --to {self.name}.",
            )
        if source.scores:
            raise ModelError(
                f"{source.name} is a reward model, and {self.name} files are for models that generate text",
                "Export it with --to merged.",
            )
        for module, package in self.packages.items():
            if not installed(module):
                raise MissingDependencyError(
                    f"--to {self.name} needs {package}, which is not installed", "Run: pip install 'prefine[quantize]'."
                )
        calibration_rows(source, self.most_rows)
        group_size(read_json_object(fetched_whole(source.location.base, source.revision) / "config.json"))
        require_room_for_merged(source, options.final, options.dtype or _DTYPE)
        # The merged model and the quantised one are there at the same time.
        width = 4 if options.dtype == "float32" else 2
        require_disk(options.final, (width + _MOST_BYTES) * source.base.parameters)

    def write(self, source: ExportSource, folder: Path, options: ExportOptions) -> list[Artefact]:
        """See Format."""
        work = folder / ".work"
        merged, made = work / "merged", work / "made"
        merged.mkdir(parents=True)
        rows = calibration_rows(source, self.most_rows)
        source.save_merged(merged, options.dtype or _DTYPE)
        source.release()
        save_file({"rows": rows}, work / "rows.safetensors")
        device = choose_device("auto")
        job = {
            "folder": os.fspath(merged),
            "out": os.fspath(made),
            "tokens": os.fspath(work / "rows.safetensors"),
            "format": _FORMATS[self.name],
            "symmetric": self.symmetric,
            "algorithms": self.algorithms,
            "group_size": group_size(read_json_object(merged / "config.json")),
            "iterations": _ITERATIONS.get(device.type, 0),
            "device": str(device) if device.type in _ITERATIONS else "cpu",
            "half": choose_dtype("auto", device)[0] != torch.float32,
            "seed": _SEED,
            "threads": torch.get_num_threads(),
        }
        (work / "job.json").write_text(json.dumps(job), "utf-8")
        run_quietly("prefine.export.quantise_weights", work / "job.json", f"quantising to {self.name}")
        for path in sorted(made.rglob("*")):
            if path.is_file():
                shutil.move(path, folder / path.name)
        for path in sorted(merged.iterdir()):  # tokenizer, template and ends as the run has them
            if not path.name.startswith(("model", "config.json")):
                shutil.copyfile(path, folder / path.name)
        shutil.rmtree(work)
        return self.artefacts(source, folder, options)

    def artefacts(self, source: ExportSource, folder: Path, options: ExportOptions) -> list[Artefact]:
        """See Format."""
        return [Artefact(f"{self.name} {_BITS} bits", ".", "auto-round", _LIMITS)]


class GptqFormat(QuantizedFormat):
    """4-bit weights as GPTQ's files hold them."""

    name = "gptq"
    symmetric = True
    algorithms = ()  # auto-round's own, which GPTQ's file format holds as well
    most_rows = 128
    packages = MappingProxyType({"auto_round": "auto-round"})


class AwqFormat(QuantizedFormat):
    """4-bit weights as AWQ's files hold them."""

    name = "awq"
    symmetric = False
    algorithms = ("awq", "rtn")  # AWQ's own: channels scaled by their activations, then rounded
    # Each layer runs on all rows about 40 times. 16 sequences do (Lin et al. 2023, arXiv 2306.00978, figure 8).
    most_rows = 16
    # auto-round itself has no kernel for these files on a processor, and would load them without their weights.
    packages = MappingProxyType({"auto_round": "auto-round", "auto_round_kernel": "auto-round-lib"})


def installed(module: str) -> bool:
    """Whether a module is there; it is not imported."""
    return importlib.util.find_spec(module) is not None


def calibration_rows(source: ExportSource, most_rows: int) -> Tensor:
    """(rows, tokens) int64: prompts and first answers of training rows of the run, in a random order, end to end.

    Raises:
        ModelError: it is no run, or its rows are too few.
    """
    path = None if source.run is None else source.run.data / "train.arrow"
    if path is None or not path.is_file():
        raise ModelError(
            f"{source.name} has no training rows to calibrate on", "Name a run of prefine, whose data/ is still there."
        )
    tokens: list[int] = []
    store = TokenStore(path)
    for index in random.Random(_SEED).sample(range(len(store)), len(store)):  # noqa: S311 - no secret
        tree = store[index]
        tokens += [*tree.prompt, *(tree.answers[0] if tree.answers else ())]
        if len(tokens) >= most_rows * _ROW_TOKENS:
            break
    length = min(_ROW_TOKENS, len(tokens) // _FEWEST_ROWS)
    if length < _SHORTEST_ROW:
        raise ModelError(
            f"{source.name} has {len(tokens)} tokens to calibrate on, and {_FEWEST_ROWS * _SHORTEST_ROW} are needed",
            "Train it on more rows, or export with --to gguf, which needs no calibration.",
        )
    rows = min(most_rows, len(tokens) // length)
    return torch.tensor(tokens[: rows * length], dtype=torch.int64).view(rows, length)


def group_size(config: Mapping[str, Any]) -> int:
    """The largest group that divides the inputs of every layer.

    Raises:
        ModelError: none does.
    """
    text = config.get("text_config") or config
    inputs = [text.get("hidden_size"), text.get("intermediate_size")]
    heads, size = text.get("num_attention_heads"), text.get("head_dim")
    inputs += [heads * size] if heads and size else []
    widths = [int(each) for each in inputs if each]
    found = next((size for size in _GROUP_SIZES if all(width % size == 0 for width in widths)), None)
    if found is None:
        raise ModelError(
            f"its layers have {', '.join(map(str, widths))} inputs, which {_GROUP_SIZES[-1]} does not divide",
            "Export it with --to gguf or --to merged.",
        )
    return found


def load_auto_round(path: Path, options: Mapping[str, Any]) -> ForeignModel:
    """A loader of the proof: transformers with auto-round's kernels, which run on any processor."""
    from transformers import AutoModelForCausalLM, AutoRoundConfig, AutoTokenizer

    began = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(
        path, quantization_config=AutoRoundConfig(), device_map={"": "cpu"}, dtype=torch.float32, **SAFELY
    )
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    libraries = ["torch", "transformers", "auto-round"]
    return TransformersModel(model.eval(), tokenizer, libraries, time.perf_counter() - began)
