"""`--to adapter`: a PEFT adapter with all that belongs to it, which peft and servers load on its base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from prefine.errors import ModelError, RecipeError
from prefine.export.formats import Artefact, ExportOptions, limits_of
from prefine.export.merging import peft_warnings_off
from prefine.export.room import require_disk, require_memory
from prefine.export.source import ExportSource
from prefine.models.loading.card import Story, describe_result
from prefine.models.loading.quiet import known_noise_off
from prefine.models.loading.stops import save_ends


class AdapterFormat:
    """See prefine.export.formats.Format."""

    name = "adapter"
    library: str | None = None
    usage = (
        "",
        "vLLM serves it on its base: `vllm serve BASE --enable-lora --lora-modules NAME=FOLDER`, with "
        "`--max-lora-rank` where the rank is over 16.",
    )

    def require(self, source: ExportSource, options: ExportOptions) -> None:
        """See Format."""
        refuse_types(self.name, options)
        if not source.has_adapter:
            raise ModelError(
                f"{source.name} holds all weights of a model, and no adapter", "Export it with --to merged."
            )
        require_memory(reference_bytes(source), f"comparing {source.name} with its export")
        require_disk(options.final, adapter_bytes(source))

    def write(self, source: ExportSource, folder: Path, options: ExportOptions) -> list[Artefact]:
        """See Format."""
        loaded = source.loaded
        model: Any = loaded.packed.model
        if options.dtype is not None:
            for name, weight in model.named_parameters():
                if "lora_" in name or "modules_to_save" in name:
                    weight.data = weight.data.to(getattr(torch, options.dtype))
        model.peft_config["default"].revision = source.revision
        with known_noise_off(), peft_warnings_off():
            model.save_pretrained(folder, selected_adapters=["default"])
        loaded.tokenizer.save_pretrained(folder)
        save_ends(loaded.packed.causal, folder)
        describe_result(folder, options.final, loaded.as_base(), None, Story())
        return self.artefacts(source, folder, options)

    def artefacts(self, source: ExportSource, folder: Path, options: ExportOptions) -> list[Artefact]:
        """See Format."""
        computed = source.reference_dtype if source.quantization != "none" else stored_dtype(source)
        loading = {"dtype": computed, "quantization": None if source.quantization == "none" else source.quantization}
        limits = limits_of(computed, options.dtype or "float32", *source.roundings)
        return [Artefact(self.name, ".", "peft", limits, loading)]


def refuse_types(name: str, options: ExportOptions) -> None:
    """Raise RecipeError if a format without types was asked for some."""
    if options.types:
        raise RecipeError(f"--to is {name}:{','.join(options.types)}, and {name} has no types", f"Write --to {name}.")


def stored_dtype(source: ExportSource) -> str:
    """The type that the base's weights are stored in, as torch calls it."""
    return source.base.stored_dtype


def adapter_bytes(source: ExportSource) -> int:
    """Bytes of an adapter's files."""
    folder = source.location.adapter
    return 0 if folder is None else sum(file.stat().st_size for file in folder.iterdir() if file.is_file())


def reference_bytes(source: ExportSource) -> int:
    """Bytes of memory that the run takes in float32; a quantised base takes less."""
    return 4 * source.base.parameters
