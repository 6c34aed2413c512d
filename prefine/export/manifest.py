"""export.json: what an export is, where it came from, how it was proven, and the checksums of its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prefine import __version__
from prefine.errors import CheckpointError
from prefine.export.exporter import Proven
from prefine.export.formats import Artefact
from prefine.export.source import ExportSource
from prefine.json_reading import JsonError, read_json_object
from prefine.models.loading.identity import identity_of, tokenizer_hash
from prefine.models.loading.location import absolute_name, portable_name, portable_path
from prefine.runs.atomic import JSON, json_bytes, sha256_of_file

NAME = "export.json"
VERSION = 1
# Users edit it: it has no checksum.
_README = "README.md"


def lineage(source: ExportSource, final: Path) -> dict[str, JSON]:
    """What an export was made from. Paths are relative to its folder.

    Args:
        final: where the export will be.
    """
    run, manifest = source.run, source.manifest
    identity = identity_of(source.location, source.revision)
    recipe = manifest.get("recipe", {})
    began = recipe.get("model", {}).get("name")
    data = manifest.get("data", {})
    files = data.get("train", {}).get("files", []) if isinstance(data, dict) else []
    return {
        "model": portable_path(absolute_name(source.name if run is None else str(run.path)), final),
        "run_id": manifest.get("run_id"),
        "stage": manifest.get("stage"),
        "began_with": None if began is None else portable_path(absolute_name(began), final),
        "base": portable_name(source.location, final),
        "base_revision": source.revision,
        "base_sha256": identity.weights,
        "base_config_sha256": identity.config,
        "adapter_sha256": identity.adapter,
        "identity": identity.digest,
        "tokenizer_sha256": tokenizer_hash(source.location, source.revision),
        "quantization": source.quantization,
        "recipe_sha256": None if run is None or not run.recipe.is_file() else sha256_of_file(run.recipe),
        "data": [{"name": Path(str(each["path"])).name, "sha256": each["sha256"]} for each in files],
        "trained_with": {"prefine": manifest.get("prefine"), "libraries": manifest.get("libraries")},
    }


def contents(lineage: Mapping[str, JSON], asked: Mapping[str, JSON], proven: Sequence[Proven]) -> dict[str, Any]:
    """All of export.json but the checksums.

    Args:
        lineage: see `lineage`.
        asked: format, types and dtype.
        proven: the artefacts.
    """
    found = verdict(proven)
    return {
        "export_version": VERSION,
        **asked,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "prefine": __version__,
        "forced": not found["proven"],
        "lineage": lineage,
        **found,
    }


def verdict(proven: Sequence[Proven]) -> dict[str, Any]:
    """The part of export.json that a proof decides: the artefacts, their figures, and whether all are proven."""
    return {
        "proven": not any(each.failures for each in proven),
        "artefacts": [asdict(each.artefact) for each in proven],
        "proof": [dict(each.proof) for each in proven],
        "failures": [list(each.failures) for each in proven],
    }


def figures_of(proof: Mapping[str, Any]) -> dict[str, JSON]:
    """A proof's numbers, without its samples, for the run's manifest."""
    return {key: value for key, value in proof.items() if key != "samples"}


class _ListedFile(BaseModel):
    sha256: str
    bytes: int


class _ListedArtefact(BaseModel):
    name: str


class _Lineage(BaseModel):
    model: str
    base_sha256: str | None
    adapter_sha256: str | None
    tokenizer_sha256: str | None


class ExportFile(BaseModel):
    """What export.json must have to be verified; other keys are for people."""

    model_config = ConfigDict(strict=True)

    format: str
    types: list[str]
    dtype: str | None
    forced: bool
    lineage: _Lineage
    artefacts: list[_ListedArtefact] = Field(min_length=1)
    files: dict[str, _ListedFile] = Field(min_length=1)


def write_manifest(folder: Path, values: Mapping[str, JSON]) -> None:
    """Write export.json with the checksums of all other files in the folder, README.md excepted."""
    files: dict[str, JSON] = {
        file.relative_to(folder).as_posix(): {"sha256": sha256_of_file(file), "bytes": file.stat().st_size}
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.relative_to(folder).as_posix() not in (NAME, _README)
    }
    (folder / NAME).write_bytes(json_bytes({**values, "files": files}, indent=2))


def read_manifest(folder: Path) -> dict[str, Any]:
    """export.json of a folder, once all files are known to be as they were written.

    Raises:
        CheckpointError: there is none, or files are missing or changed.
    """
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {str(folder)!r}", "Name a folder that prefine export wrote.")
    try:
        values = read_json_object(folder / NAME)
    except (OSError, JsonError) as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise CheckpointError(
            f"{folder / NAME} cannot be read ({reason})", "Name a folder that prefine export wrote."
        ) from None
    if values.get("export_version") != VERSION:
        raise CheckpointError(f"{folder / NAME} is of another release, or damaged", "Export the run again.")
    try:
        ExportFile.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise CheckpointError(
            f"{folder / NAME} is of another release, or damaged ({where}: {first['msg']})", "Export the run again."
        ) from None
    if flaws := [*_flaws(folder, values["files"]), *_unlisted(folder, values["files"])]:
        raise CheckpointError(
            f"{folder} is not what was exported: {', '.join(flaws)}", "Copy it again, or export the run again."
        )
    return values


def _flaws(folder: Path, files: Mapping[str, Any]) -> list[str]:
    flaws = []
    for name, expected in files.items():
        file = folder / name
        inside = file.resolve().is_relative_to(folder.resolve())
        if not inside or not file.is_file():
            flaws.append(f"{name} is missing")
        elif file.stat().st_size != expected.get("bytes") or sha256_of_file(file) != expected.get("sha256"):
            flaws.append(f"{name} was changed")
    return flaws


def _unlisted(folder: Path, files: Mapping[str, Any]) -> list[str]:
    """Files that loaders may find and no checksum covers. Hidden ones are a hub's, and no loader reads them."""
    found = (file.relative_to(folder) for file in sorted(folder.rglob("*")) if not file.is_dir())
    return [
        f"{name.as_posix()} is not of the export"
        for name in found
        if name.as_posix() not in files and not name.parts[0].startswith(".") and str(name) not in (NAME, _README)
    ]


def asked_for(values: Mapping[str, Any]) -> str:
    """The `--to` of a folder's export."""
    types = ",".join(values["types"])
    return f"{values['format']}:{types}" if types else str(values["format"])


def require_same(folder: Path, values: Mapping[str, Any], artefacts: Sequence[Artefact]) -> None:
    """Raise CheckpointError where export.json lists an artefact that is not among those that can be proven here."""
    here = {each.name for each in artefacts}
    if not here or (missing := [name for each in values["artefacts"] if (name := each["name"]) not in here]):
        what = missing[0] if here else "an artefact"
        raise CheckpointError(
            f"{folder / NAME} lists {what!r:.80}, which --to {asked_for(values)} does not write here",
            "Install llama.cpp if the name says so; otherwise export the run again.",
        )
