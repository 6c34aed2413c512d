"""`--to gguf:TYPE,TYPE`: files for llama.cpp and Ollama, all from one merge, with template, tokenizer and end of turn.

The merged model is converted by llama.cpp's own converter: that of the folder in PREFINE_LLAMA_CPP, or the copy that
auto-round ships. K-quants are written by llama-quantize where llama.cpp is found, else by auto-round.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prefine.engines.llama_cpp import QUANTIZE, SERVER, LlamaCpp, find_llama_cpp
from prefine.errors import MissingDependencyError, ModelError
from prefine.export.child import run_program, run_quietly
from prefine.export.formats import Artefact, ExportOptions
from prefine.export.gguf_convert import bundled_converter
from prefine.export.gguf_types import GGUF_TYPES, require_types
from prefine.export.merged import require_room_for_merged
from prefine.export.modelfile import Pieces, modelfile, pieces_of
from prefine.export.room import require_disk
from prefine.export.source import ExportSource
from prefine.json_reading import read_json_object
from prefine.models.loading.stops import GENERATION_CONFIG
from prefine.runs.atomic import json_bytes

_INSTALL = "Run: pip install 'prefine[quantize]' (auto-round, which brings llama.cpp's converter)."
_WORK = ".work"
_MODELFILE = "Modelfile"
# llama.cpp keeps keys and values in float16 and rounds the inputs of products to the weights' type.
_IN_LLAMA_CPP_AT_LEAST = replace(GGUF_TYPES["f16"].limits, kl_mean=5e-4, kl_p99=5e-3)


@dataclass(frozen=True)
class _Tools:
    """What writes the files.

    Attributes:
        converter: folder around llama.cpp's `conversion` package.
        quantise: llama-quantize; None where auto-round does its work.
        llama_cpp: what there is of llama.cpp.
    """

    converter: Path
    quantise: Path | None
    llama_cpp: LlamaCpp


class GgufFormat:
    """See prefine.export.formats.Format."""

    name = "gguf"
    library: str | None = "gguf"
    usage = (
        "With llama.cpp, or with Ollama by the Modelfile, in this folder:",
        "",
        "```sh",
        "llama-server --model FILE.gguf --jinja",
        "ollama create NAME -f Modelfile && ollama run NAME",
        "```",
        "",
        "transformers reads a file as whole weights: "
        '`AutoModelForCausalLM.from_pretrained(".", gguf_file="FILE.gguf")`.',
    )

    def require(self, source: ExportSource, options: ExportOptions) -> None:
        """See Format."""
        types = require_types(options.types)
        if source.scores:
            raise ModelError(
                f"{source.name} is a reward model, and GGUF files hold none", "Export it with --to merged."
            )
        tools = _tools(types)
        _require_known(source, tools)
        require_room_for_merged(source, options.final, _dtype(options))
        widest = 4 if _dtype(options) == "float32" else 2
        copies = 2 if any(GGUF_TYPES[name].k_quant for name in types) and tools.quantise else 1
        written = sum(GGUF_TYPES[name].bits / 8 for name in types)
        require_disk(options.final, int((widest * copies + written) * source.base.parameters))

    def write(self, source: ExportSource, folder: Path, options: ExportOptions) -> list[Artefact]:
        """See Format."""
        types = require_types(options.types)
        tools = _tools(types)
        work = folder / _WORK
        work.mkdir()
        name = file_name(source.name)
        merged = work / name  # which auto-round takes for the model's name
        template = source.loaded.template
        turns = _pieces(template)
        source.save_merged(merged, _dtype(options))
        source.release()
        _name_end(merged, template)
        files = {kind: folder / f"{name}-{kind}.gguf" for kind in types}
        _convert(tools, merged, work, name, files)
        (folder / _MODELFILE).write_text(_modelfile(merged, files, template, turns), "utf-8")
        shutil.rmtree(work)
        return self.artefacts(source, folder, options)

    def artefacts(self, source: ExportSource, folder: Path, options: ExportOptions) -> list[Artefact]:
        """See Format."""
        types, programs = require_types(options.types), find_llama_cpp().programs
        files = [(kind, path) for kind in types for path in sorted(folder.glob(f"*-{kind}.gguf"))]
        return [artefact for kind, path in files for artefact in _artefacts(kind, path, SERVER in programs)]


def file_name(name: str) -> str:
    """What files of a model are called: the last part of its name, of letters that every system allows."""
    return re.sub(r"[^\w.-]+", "-", Path(name).name.rpartition(":")[2]).strip("-.") or "model"


def _dtype(options: ExportOptions) -> str:
    """The type of the merged weights that files are made of: float32, so that each file rounds once."""
    return options.dtype or "float32"


def _tools(types: Sequence[str]) -> _Tools:
    """Find what writes these types.

    Raises:
        MissingDependencyError: there is no converter, or nothing that writes K-quants.
    """
    found = find_llama_cpp()
    converter = found.source or bundled_converter()
    if converter is None:
        raise MissingDependencyError("GGUF files need llama.cpp's converter, which was not found", _INSTALL)
    quantise = found.programs.get(QUANTIZE)
    if quantise is None and bundled_converter() is None and (first := next((t for t in types if _is_k(t)), None)):
        raise MissingDependencyError(f"{first} needs {QUANTIZE} or auto-round, and neither was found", _INSTALL)
    return _Tools(converter, quantise, found)


def _is_k(kind: str) -> bool:
    return GGUF_TYPES[kind].k_quant


def _require_known(source: ExportSource, tools: _Tools) -> None:
    """Refuse an architecture that llama.cpp's converter does not know, before the model is loaded."""
    from prefine.models.loading.location import local_folder

    folder = local_folder(source.location.base, source.revision)
    if folder is None:
        return
    kinds = read_json_object(folder / "config.json").get("architectures") or []
    table = (tools.converter / "conversion" / "__init__.py").read_text("utf-8")
    unknown = [kind for kind in kinds if f'"{kind}"' not in table]
    if unknown:
        raise ModelError(
            f"{source.name} is a {unknown[0]}, which llama.cpp's converter in {tools.converter} does not know",
            "Use a newer llama.cpp (PREFINE_LLAMA_CPP) or auto-round, or export with --to merged.",
        )


def _name_end(folder: Path, template: Any) -> None:
    """Let the tokenizer and the config name the template's end of turn as end of sequence: GGUF files hold one."""
    tokenizer = template.tokenizer
    end = template.turn_end
    if end == tokenizer.eos_token_id:
        return
    for name, value in (("tokenizer_config.json", tokenizer.convert_ids_to_tokens(end)), ("config.json", end)):
        path = folder / name
        settings = dict(read_json_object(path))
        settings["eos_token_id" if name == "config.json" else "eos_token"] = value
        path.write_bytes(json_bytes(settings, indent=2))


def _convert(tools: _Tools, merged: Path, work: Path, name: str, files: Mapping[str, Path]) -> None:
    """Write all files, in processes of their own."""
    plain = {kind: os.fspath(path) for kind, path in files.items() if not _is_k(kind)}
    quantised = {kind: path for kind, path in files.items() if _is_k(kind)}
    job: dict[str, Any] = {"folder": os.fspath(merged), "name": name, "root": os.fspath(tools.converter)}
    whole = work / "whole.gguf"
    if quantised and tools.quantise is not None:
        kind = "bf16" if _stored(merged) == "bfloat16" else "f16" if _stored(merged) == "float16" else "f32"
        if kind in plain:
            whole = Path(plain[kind])
        else:
            plain[kind] = os.fspath(whole)
    by_auto_round = {} if tools.quantise is not None else {kind: os.fspath(path) for kind, path in quantised.items()}
    path = work / "job.json"
    path.write_text(json.dumps(job | {"convert": plain, "quantise": by_auto_round}), "utf-8")
    run_quietly("prefine.export.gguf_convert", path, "the conversion to GGUF")
    if tools.quantise is not None:
        for kind, file in quantised.items():
            command = [os.fspath(tools.quantise), os.fspath(whole), os.fspath(file), kind.upper()]
            run_program(command, file.parent, QUANTIZE)


def _stored(merged: Path) -> str:
    config = read_json_object(merged / "config.json")
    return str(config.get("dtype") or config.get("torch_dtype") or "float32")


def _artefacts(kind: str, path: Path, served: bool) -> list[Artefact]:
    """How a file is proved: by transformers' reader, and by llama.cpp itself where it is found."""
    limits = GGUF_TYPES[kind].limits
    found = [Artefact(f"gguf {kind}", ".", "transformers", limits, {"gguf_file": path.name, "dtype": "float32"})]
    if served:
        in_llama_cpp = max(limits, _IN_LLAMA_CPP_AT_LEAST, key=lambda each: each.kl_mean)
        found.append(Artefact(f"gguf {kind} in llama.cpp", path.name, "llama.cpp", in_llama_cpp))
    return found


def _pieces(template: Any) -> Pieces | None:
    def render(turns: Sequence[Mapping[str, str]]) -> str:
        text = template.tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=True)
        return str(text)

    return pieces_of(render)


def _modelfile(merged: Path, files: Mapping[str, Path], template: Any, pieces: Pieces | None) -> str:
    tokenizer = template.tokenizer
    generation = merged / GENERATION_CONFIG
    settings = read_json_object(generation) if generation.is_file() else {}
    context = read_json_object(merged / "config.json").get("max_position_embeddings")
    if pieces is not None and tokenizer.bos_token and _adds_bos(next(iter(files.values()))):
        pieces = pieces.without(tokenizer.bos_token)
    ends = [template.turn_end, *sorted(template.stop_ids - {template.turn_end})]
    stops = [str(each) for each in tokenizer.convert_ids_to_tokens(ends)]
    return modelfile([path.name for path in files.values()], pieces, stops, settings, context)


def _adds_bos(path: Path) -> bool:
    """Whether llama.cpp puts a BOS token before prompts by itself, as a file says."""
    from gguf import GGUFReader

    field = GGUFReader(os.fspath(path)).fields.get("tokenizer.ggml.add_bos_token")
    return field is not None and bool(field.contents())
