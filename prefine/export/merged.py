"""`--to merged`: one whole model in safetensors, which transformers, vLLM and SGLang load."""

from __future__ import annotations

from pathlib import Path

from prefine.export.adapter import reference_bytes, refuse_types, stored_dtype
from prefine.export.formats import Artefact, ExportOptions, limits_of
from prefine.export.room import require_disk, require_memory
from prefine.export.source import ExportSource

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class MergedFormat:
    """See prefine.export.formats.Format."""

    name = "merged"
    library: str | None = None
    usage = ("", "Servers take the folder as it is: `vllm serve FOLDER`, `prefine serve FOLDER`.")

    def require(self, source: ExportSource, options: ExportOptions) -> None:
        """See Format."""
        refuse_types(self.name, options)
        require_room_for_merged(source, options.final, merged_dtype(source, options))

    def write(self, source: ExportSource, folder: Path, options: ExportOptions) -> list[Artefact]:
        """See Format."""
        source.save_merged(folder, merged_dtype(source, options))
        return self.artefacts(source, folder, options)

    def artefacts(self, source: ExportSource, folder: Path, options: ExportOptions) -> list[Artefact]:
        """See Format."""
        dtype = merged_dtype(source, options)
        return [Artefact(f"{self.name} {dtype}", ".", "transformers", limits_of(dtype, *source.roundings))]


def merged_dtype(source: ExportSource, options: ExportOptions) -> str:
    """The type that merged weights are saved in: what was asked for, else that of the base's stored weights."""
    return options.dtype or stored_dtype(source)


def require_room_for_merged(source: ExportSource, folder: Path, dtype: str) -> None:
    """Refuse a merge that disk or memory has no room for.

    Raises:
        CheckpointError, ModelError: see room.py.
    """
    require_disk(folder, _BYTES[dtype] * (source.base.parameters + source.untied_parameters))
    # A quantised base is in memory beside the whole weights that are made of it, most of it in 4 or 8 bits.
    more = 0 if source.quantization == "none" else source.base.parameters
    untied = 4 * source.untied_parameters
    require_memory(reference_bytes(source) + more + untied, f"merging {source.name}")
