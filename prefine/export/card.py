"""README.md of an export: the hub's YAML header, lineage, data, recipe, evaluation, proof, and how to load it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefine.data.reading.sources import locate
from prefine.errors import DataError
from prefine.export.formats import Format
from prefine.export.source import ExportSource
from prefine.json_reading import JsonError, read_json_object
from prefine.models.loading.card import Card, Story, code, hub_name, plain
from prefine.models.loading.embedded import PREFIX
from prefine.models.loading.location import local_folder, portable_name

# What the hub calls the relation to the base model.
_RELATIONS = {"adapter": "adapter", "merged": "finetune"}
_EMBEDDED_LICENSE = "apache-2.0"
_HEADER_LICENSE = re.compile(r"^license:\s*([\w.-]+)\s*$", re.MULTILINE)


def write_card(
    folder: Path, final: Path, source: ExportSource, form: Format, values: Mapping[str, Any], proof: Sequence[str]
) -> None:
    """Write README.md.

    Args:
        folder: where it goes now.
        final: where the folder will be.
        source: what was exported.
        form: its format.
        values: of export.json.
        proof: Markdown on the proof.
    """
    stage = source.manifest.get("stage")
    story = Story(
        tags=tuple(str(each) for each in (stage,) if each),
        lines=tuple(_lines(source, values, proof)),
        header=tuple(_header(source, form.name)),
        loading=form.usage,
        library=form.library,
    )
    base, heads = portable_name(source.location, final), 1 if source.scores else None
    adapter = form.name == "adapter"
    quantised = (source.quantization, source.reference_dtype) if adapter and source.quantization != "none" else None
    card = Card(base, str(values["lineage"]["base_sha256"]), adapter, heads, story, quantised)
    (folder / "README.md").write_text(card.text(), encoding="utf-8", newline="\n")


def _header(source: ExportSource, name: str) -> Iterator[str]:
    if hub_name(source.location.base_name) is not None:
        yield f"base_model_relation: {_RELATIONS.get(name, 'quantized')}"
    license_name = base_license(source)
    if license_name is not None:
        yield f"license: {license_name}"
    if datasets := sorted(_hub_datasets(source)):
        yield "datasets:"
        yield from (f"- {json.dumps(each)}" for each in datasets)


def base_license(source: ExportSource) -> str | None:
    """The license that the base's own card names; None where it names none."""
    if source.location.base_name.startswith(PREFIX):
        return _EMBEDDED_LICENSE
    folder = local_folder(source.location.base, source.revision)
    readme = None if folder is None else folder / "README.md"
    if readme is None or not readme.is_file():
        return None
    text = readme.read_text("utf-8", errors="replace")
    header = text.split("---", 2)[1] if text.startswith("---") and text.count("---") > 1 else ""
    found = _HEADER_LICENSE.search(header)
    return found[1] if found else None


def _hub_datasets(source: ExportSource) -> set[str]:
    named = source.manifest.get("recipe", {}).get("data", {}).get("train") or []
    found = set()
    for each in [named] if isinstance(named, str) else named:
        try:
            parts = locate(each)
        except DataError:  # moved since
            continue
        found |= {part.name.removeprefix("hf:").partition("#")[0] for part in parts if part.form == "hub"}
    return found


def _lines(source: ExportSource, values: Mapping[str, Any], proof: Sequence[str]) -> Iterator[str]:
    if values["forced"]:
        yield "> **Kept with `--force` although it is not what was trained:**"
        for failures in values["failures"]:
            yield from (f"> - {plain(each)}" for each in failures)
        yield ""
    yield "## Where it comes from"
    yield ""
    yield from (f"- {name}: {text}" for name, text in _lineage(source, values))
    yield from ("", "`export.json` has the checksums of all files and of what they were made from.", "")
    yield from _heldout(source)
    yield from ("## Proof", "", *proof, "")


def _lineage(source: ExportSource, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    line, recipe = values["lineage"], source.manifest.get("recipe", {})
    yield "exported from", f"{code(line['model'])} by prefine {plain(values['prefine'])}, {plain(values['created'])}"
    if source.run is None:
        return
    yield "training", f"{plain(line['stage'])}, begun with {code(line['began_with'])}"
    lora, training = recipe.get("lora"), recipe.get("training", {})
    if lora is not None and source.has_adapter:
        yield "LoRA", f"rank {lora.get('r')}, alpha {lora.get('alpha'):g}"
    else:
        yield "LoRA", "none, all weights were trained"
    for name, key in (("learning rate", "learning_rate"), ("batch size", "batch_size"), ("seed", "seed")):
        yield name, plain(training.get(key))
    yield "base in training", "whole weights" if source.quantization == "none" else source.quantization
    for name, counts in source.manifest.get("data", {}).items():
        yield f"rows, {plain(name)}", plain(counts.get("rows"))
    for each in line["data"]:
        yield "data", f"{code(each['name'])}, SHA-256 `{each['sha256']}`"
    license_name = base_license(source)
    yield "license", "that of the base model" + (f", {license_name}" if license_name else "; its files name none")


def _heldout(source: ExportSource) -> Iterator[str]:
    if source.run is None:
        return
    try:
        figures = read_json_object(source.run.evaluation).get("heldout") or {}
    except (OSError, JsonError):
        return
    before, after = figures.get("before") or {}, figures.get("after") or {}
    rows = [
        f"| {plain(name)} | {before[name]:.4g} | {value:.4g} |"
        for name, value in after.items()
        if isinstance(value, int | float) and isinstance(before.get(name), int | float) and name != "seconds"
    ]
    if rows:
        yield from ("## Held-out figures", "", "| metric | before | after |", "|---|---:|---:|", *rows, "")
