"""export.json: what an export is, where it came from, how it was proven, and the checksums of its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefine import __version__
from prefine.errors import CheckpointError
from prefine.export.exporter import Proven
from prefine.export.formats import Artefact, ProofLimits
from prefine.export.source import ExportSource
from prefine.json_reading import JsonError, read_json_object
from prefine.models.loading.identity import identity_of, tokenizer_hash
from prefine.models.loading.location import portable_name, portable_path
from prefine.paths import expanded
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
        "model": portable_path(_absolute(source.name if run is None else str(run.path)), final),
        "run_id": manifest.get("run_id"),
        "stage": manifest.get("stage"),
        "began_with": None if began is None else portable_path(began, final),
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


def _absolute(name: str) -> str:
    """A folder's absolute path; a hub id or an embedded model's name as it is."""
    path = Path(expanded(name))
    return str(path.absolute()) if path.exists() else name


def contents(lineage: Mapping[str, JSON], asked: Mapping[str, JSON], proven: Sequence[Proven]) -> dict[str, Any]:
    """All of export.json but the checksums.

    Args:
        lineage: see `lineage`.
        asked: format, types and dtype.
        proven: the artefacts.
    """
    failed = any(each.failures for each in proven)
    return {
        "export_version": VERSION,
        **asked,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "prefine": __version__,
        "proven": not failed,
        "forced": failed,
        "lineage": lineage,
        "artefacts": [asdict(each.artefact) for each in proven],
        "proof": [dict(each.proof) for each in proven],
        "failures": [list(each.failures) for each in proven],
    }


def figures_of(proof: Mapping[str, Any]) -> dict[str, JSON]:
    """A proof's numbers, without its samples, for the run's manifest."""
    return {key: value for key, value in proof.items() if key != "samples"}


def write_manifest(folder: Path, values: Mapping[str, JSON]) -> None:
    """Write export.json with the checksums of all other files in the folder, README.md excepted."""
    files: dict[str, JSON] = {
        file.relative_to(folder).as_posix(): {"sha256": sha256_of_file(file), "bytes": file.stat().st_size}
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name not in (NAME, _README)
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
    if values.get("export_version") != VERSION or not isinstance(values.get("files"), dict):
        raise CheckpointError(f"{folder / NAME} is of another release, or damaged", "Export the run again.")
    flaws = list(_flaws(folder, values["files"]))
    if flaws:
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


def artefacts_of(values: Mapping[str, Any]) -> list[Artefact]:
    """The artefacts that export.json lists, with the limits they were exported under."""
    return [
        Artefact(**each | {"limits": ProofLimits(**each["limits"] | {"kept": tuple(each["limits"]["kept"])})})
        for each in values["artefacts"]
    ]
