"""From a name and a format to a proven export: the folder appears whole, or not at all."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefine.errors import CheckpointError, ModelError, PrefineError, RecipeError
from prefine.export import manifest as manifests
from prefine.export.card import write_card
from prefine.export.exporter import Exporter, Progress, Proven
from prefine.export.formats import ExportOptions, dtype_named, format_named
from prefine.export.language_export import LanguageExport
from prefine.export.reward_export import RewardExport
from prefine.export.source import ExportSource
from prefine.json_reading import read_json_object
from prefine.models.loading.location import portable_path
from prefine.runs.atomic import (
    atomic_write,
    require_writable,
    sha256_of_file,
    storage_errors,
    sweep_temporaries,
    write_json,
)
from prefine.runs.directory import RunDirectory

log = logging.getLogger("prefine")


@dataclass(frozen=True)
class Exported:
    """An export and its proof.

    Attributes:
        folder: where it is.
        values: of its export.json; after `verify_export`, with the new proof.
        table: the proof as text: a header, then a row for each artefact.
        failures: the limits that it exceeds, in words; none if it is proven.
    """

    folder: Path
    values: dict[str, Any]
    table: list[tuple[str, ...]]
    failures: list[str]


def _silent(what: str, done: int, total: int) -> None:
    """No progress."""


def export_run(
    name: str,
    to: str,
    *,
    out: Path | None = None,
    dtype: str | None = None,
    force: bool = False,
    progress: Progress = _silent,
) -> Exported:
    """Export a model, and prove that what other libraries load is what was trained.

    Args:
        name: a run, a folder with a model or an adapter, a hub id, or embedded:….
        to: the format, as in "merged" or "gguf:q4_k_m,q8_0".
        out: the folder to write; by default export/FORMAT in the run's folder.
        dtype: type of the weights; None for the format's default.
        force: keep an export that exceeds a limit of its proof, marked as such.
        progress: see Progress.

    Raises:
        RecipeError: an unknown format, type or dtype; no folder is named and the model is no run's.
        ModelError, CheckpointError: the run is not finished, its base is missing or another one, the folder is taken,
            disk or memory do not suffice; or the export is not what was trained, and is not kept.
    """
    form, types = format_named(to)
    asked = dtype_named(dtype)
    if out is not None:
        _require_free(out)
    source = ExportSource.open(name)
    final = out or _default_folder(source, form.name, asked)
    _require_free(final)
    # What killed exports left takes as much room as a model. A folder of the user's may hold what others write.
    sweep_temporaries(final.parent, None if out is None else final.name)
    options = ExportOptions(types, asked, final)
    exporter = _exporter(source)
    exporter.require(form, options)
    line = manifests.lineage(source, final)
    with _folders_above(final), atomic_write(final) as folder:
        folder.mkdir()
        proven = exporter.make(form, folder, options, progress)
        failures = [f"{each.artefact.name}: {text}" for each in proven for text in each.failures]
        if failures and not force:
            raise ModelError(
                f"{final} would not be what was trained, and was not kept. {'; '.join(failures)}",
                _remedy(proven, asked),
            )
        values = manifests.contents(line, {"format": form.name, "types": list(types), "dtype": asked}, proven)
        manifests.write_manifest(folder, values)
        lines = list(exporter.card_lines(proven))
        write_card(folder, final, source, form, values, lines)
    _note_in_run(source, final, values)
    return Exported(final, values, exporter.table([each.proof for each in proven]), failures)


def note_export(name: str, folder: Path) -> None:
    """List a finished export in the manifest of its run, where a kill came before that; see `export_run`.

    Raises:
        OSError, JsonError: export.json cannot be read.
    """
    with suppress(PrefineError):  # its model is gone
        _note_in_run(ExportSource.open(name), folder, read_json_object(folder / manifests.NAME))


def verify_export(folder: Path, run: str | None = None, progress: Progress = _silent) -> Exported:
    """Check an export's files, and repeat its proof.

    Args:
        folder: that `export_run` wrote.
        run: the model it was exported from, where that is no longer where it was.
        progress: see Progress.

    Raises:
        CheckpointError: files are missing or changed, or the run is not there.
        ModelError: the run is another one now.
    """
    values = manifests.read_manifest(folder)
    try:
        form, types = format_named(manifests.asked_for(values))
        asked = dtype_named(values["dtype"])
    except RecipeError as error:
        raise CheckpointError(f"{folder / manifests.NAME} is damaged: {error.problem}", "Export again.") from None
    source = _source_of(folder, values, run)
    exporter = _exporter(source)
    artefacts = exporter.artefacts(form, folder, ExportOptions(types, asked, folder))
    manifests.require_same(folder, values, artefacts)
    proven = exporter.again(folder, artefacts, progress)
    failures = [f"{each.artefact.name}: {text}" for each in proven for text in each.failures]
    values |= manifests.verdict(proven)
    values["forced"] = values["forced"] and bool(failures)
    return Exported(folder, values, exporter.table(values["proof"]), failures)


def _exporter(source: ExportSource) -> Exporter:
    return RewardExport(source) if source.scores else LanguageExport(source)


def _require_free(final: Path) -> None:
    with storage_errors(final):
        if "\0" not in str(final) and (final.exists() or final.is_symlink()):
            raise CheckpointError(f"{final} is there already", "Name a folder that is not, with --out.")
    require_writable(final, folder_is_made=True)


def _default_folder(source: ExportSource, name: str, dtype: str | None) -> Path:
    if source.run is None:
        raise RecipeError(f"--out is missing, and {source.name} is no run", "Name a new folder with --out.")
    return source.run.exports / (name if dtype is None else f"{name}-{dtype}")


@contextmanager
def _folders_above(final: Path) -> Iterator[None]:
    """Inside, the folder that `final` will be in is there; those made for it are gone again where it fails."""
    made = [folder for folder in final.absolute().parents if not folder.exists()]
    with storage_errors(final):
        final.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for folder in made:
            with suppress(OSError):  # something else is in it by now
                folder.rmdir()
        raise


def _remedy(proven: list[Proven], dtype: str | None) -> str:
    """What may help: where rounding can have done it, a type that rounds less."""
    keep = "--force keeps it, marked."
    lost = any("of the trained change" in text for each in proven for text in each.failures)
    less = any(float(str(each.proof.get("kept") or 1)) < 1 for each in proven)
    if lost and less and dtype != "float32":
        return f"If rounding took the change off the weights, --dtype float32 keeps it. {keep}"
    return f"Choose another format or type; in float32 this is a fault of prefine or of the library. {keep}"


def _source_of(folder: Path, values: dict[str, Any], run: str | None) -> ExportSource:
    line = values["lineage"]
    name = run or _found_from(folder, str(line["model"]))
    try:
        source = ExportSource.open(name)
        now = manifests.lineage(source, folder)
    except PrefineError as error:
        raise CheckpointError(
            f"the files of {folder} are as they were exported, but what they are compared with cannot be used: "
            f"{error.problem}",
            f"{error.remedy} Or name the run with --run.",
        ) from None
    for key, what in (
        ("base_sha256", "its base's weights"),
        ("adapter_sha256", "its adapter"),
        ("tokenizer_sha256", "its tokenizer or chat template"),
    ):
        if now[key] != line[key]:
            raise ModelError(
                f"{name} is not what {folder} was exported from: {what} is another",
                "Name the run that it was exported from with --run, or export again.",
            )
    return source


def _found_from(folder: Path, name: str) -> str:
    """A model's name in export.json: a path from that folder, or any other name."""
    beside = folder / name
    return str(beside) if beside.exists() else name


def _note_in_run(source: ExportSource, final: Path, values: dict[str, Any]) -> None:
    """List the export in its run's manifest; where that cannot be written, the export says where it comes from."""
    if source.run is None:
        return
    path = portable_path(str(final.absolute()), source.run.path)
    entry = {
        "path": path,
        **{key: values[key] for key in ("format", "types", "dtype", "created", "proven")},
        "sha256": sha256_of_file(final / manifests.NAME),
        "proof": [manifests.figures_of(each) for each in values["proof"]],
    }
    try:
        with RunDirectory.create(source.run.path, resume=True) as run, storage_errors(run.manifest):
            manifest = read_json_object(run.manifest)
            others = [each for each in manifest.get("exports", []) if each.get("path") != path]
            write_json(run.manifest, {**manifest, "exports": [*others, entry]})
    except PrefineError as error:
        log.warning("the export is not listed in %s: %s", source.run.manifest, error)
