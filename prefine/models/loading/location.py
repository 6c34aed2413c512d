"""Finds the parts of a named model without loading them.

A name may be a folder with a model, a folder with a PEFT adapter, a run of prefine (runs/NAME), a hub id, or
`embedded:NAME`.
"""

from __future__ import annotations

import hashlib
import os
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefine.errors import ModelError
from prefine.json_reading import JsonError, read_json_object
from prefine.models.loading.embedded import PREFIX, embedded_folder
from prefine.models.loading.weights import ADAPTER_CONFIG as ADAPTER_CONFIG
from prefine.models.loading.weights import ADAPTER_WEIGHTS as ADAPTER_WEIGHTS
from prefine.models.loading.weights import read_object, require_plausible_config, weight_files
from prefine.nearby import mistyped, similar_path
from prefine.paths import expanded, is_there
from prefine.runs.atomic import sha256_of_file

# A file that prefine adds to an adapter: which base it belongs to.
ORIGIN = "prefine.json"
QUANTIZATIONS = ("none", "nf4", "int8")


@dataclass(frozen=True)
class Location:
    """Where a named model's parts are.

    Attributes:
        name: the name in the recipe.
        base: folder or hub id of the base weights.
        base_name: the name of the base for later runs.
        adapter: folder of a PEFT adapter on that base, or None.
        tokenizer: folder or hub id of the tokenizer.
        base_sha256: of the base's weights as the adapter's training saw them; "" or None if unknown.
        base_config_sha256: of the base's config, likewise.
        quantization: how the adapter's training quantised the base: none, nf4 or int8; "none" where nothing says.
        compute_dtype: that the adapter's training computed in; None where nothing says.
    """

    name: str
    base: str
    base_name: str
    adapter: Path | None
    tokenizer: str
    base_sha256: str | None = None
    base_config_sha256: str | None = None
    quantization: str = "none"
    compute_dtype: str | None = None


def locate_model(name: str) -> Location:
    """Find a model's parts by name, without loading them.

    Raises:
        ModelError: a folder holds neither a model nor an adapter nor a run, a run has no result yet, or a path cannot
            be opened.
    """
    try:
        return _located(name)
    except OSError as error:  # no permission; a name too long
        raise ModelError(
            f"{name!r} cannot be opened: {error.strerror or error}",
            "Check the name and its permissions.",
            field="model.name",
        ) from error


def _located(name: str) -> Location:
    if name.startswith(PREFIX):
        folder = str(embedded_folder(name))
        return Location(name, folder, name, None, folder)
    path = Path(expanded(name))
    if not path.exists():
        no_folder = f"there is no folder {name!r}"
        if not _is_hub_id(name):
            near = similar_path(name)
            remedy = "Name a folder, a run, a hub id or embedded:…"
            raise ModelError(no_folder, remedy if near is None else f"Did you mean {near}?", field="model.name")
        if meant := mistyped("models", name):
            raise ModelError(no_folder, meant, field="model.name")
        return Location(name, name, name, None, name)
    path = _result_of(path)
    return _adapter_location(name, path) if (path / ADAPTER_CONFIG).is_file() else _base_location(name, path)


def _is_hub_id(name: str) -> bool:
    """Whether a name that is not a folder can be a hub id."""
    return not name.startswith((".", "/", "~", "runs/")) and name.count("/") == 1


def _result_of(path: Path) -> Path:
    """The model folder of a run; any other path unchanged."""
    if (path / "manifest.json").is_file() and not (path / "config.json").is_file():
        if not (path / "model").is_dir():
            raise ModelError(
                f"the run {str(path)!r} has no result yet", "Finish it first: add --resume to it.", field="model.name"
            )
        return path / "model"
    return path


def _base_location(name: str, path: Path) -> Location:
    if not (path / "config.json").is_file():
        raise ModelError(
            f"{name!r} holds no model (no config.json, no {ADAPTER_CONFIG})",
            "Name a folder written by save_pretrained, or a run of prefine.",
            field="model.name",
        )
    require_plausible_config(str(path))
    if not weight_files(path):
        raise ModelError(
            f"{name!r} has a config.json but no weights in safetensors format",
            "Download the model again, or convert its weights: prefine does not read pickled ones.",
            field="model.name",
        )
    return Location(name, str(path), str(path), None, str(path))


def _adapter_location(name: str, path: Path) -> Location:
    origin = read_object(path / ORIGIN) if (path / ORIGIN).is_file() else {}
    base_name = _base_of(name, path, origin)
    if Path(base_name).exists() and (_result_of(Path(base_name)) / ADAPTER_CONFIG).is_file():
        raise ModelError(
            f"the adapter {name!r} names another adapter as its base", "Merge that one first.", field="model.name"
        )
    if not (path / ADAPTER_WEIGHTS).is_file():
        raise ModelError(
            f"{str(path)!r} has no {ADAPTER_WEIGHTS}", "Download or train the adapter again.", field="model.name"
        )
    try:
        located = locate_model(base_name)
    except ModelError as error:
        raise ModelError(
            f"the adapter {name!r} needs its base model: {error.problem}", error.remedy, field="model.name"
        ) from None
    tokenizer = str(path) if (path / "tokenizer_config.json").is_file() else located.tokenizer
    hashes = (origin.get("base_sha256"), origin.get("base_config_sha256"))
    return Location(name, located.base, base_name, path, tokenizer, *hashes, *_trained_as(path, origin))


def _trained_as(path: Path, origin: Mapping[str, Any]) -> tuple[str, str | None]:
    """The quantisation and the compute type of an adapter's training: as its run notes them, else its own files.

    Raises:
        ModelError: a quantisation that this release does not know.
    """
    manifest = _manifest_beside(path)
    recipe, model = manifest.get("recipe"), manifest.get("model")
    section = recipe.get("model") if isinstance(recipe, dict) else None
    noted = section.get("quantization") if isinstance(section, dict) else None
    quantization = noted or origin.get("quantization") or "none"
    computed = (model.get("compute_dtype") if isinstance(model, dict) else None) or origin.get("compute_dtype")
    if quantization not in QUANTIZATIONS:
        raise ModelError(
            f"the adapter {str(path)!r} was trained on a base that was quantised as {quantization!r:.40}, which is not "
            "known",
            "Use a newer prefine, or fetch the adapter again.",
            field="model.name",
        )
    return quantization, computed if computed in ("float32", "bfloat16") else None


def _base_of(name: str, path: Path, origin: Mapping[str, Any]) -> str:
    """The base of an adapter, by its files: an existing folder, a hub id or an embedded model's name.

    A path is tried relative to the adapter's folder, then to the working directory, then under the names in the recipe
    and the run that trained the adapter. The recorded hash identifies the right one.

    Raises:
        ModelError: the files name no base, or a folder that is in none of these places.
    """
    written = str(read_object(path / ADAPTER_CONFIG).get("base_model_name_or_path") or "")
    noted = str(origin.get("base") or "")
    names = [each for each in (written, noted, _noted_by_run(path)) if each]
    if not names:
        raise ModelError(
            f"the adapter {name!r} does not say which base model it belongs to",
            f"Set base_model_name_or_path in its {ADAPTER_CONFIG}.",
            field="model.name",
        )
    if noted.startswith(PREFIX) and Path(written).is_absolute():  # earlier releases saved the cache's folder
        return noted
    if written.startswith(PREFIX):
        return written
    places = [path / written, *map(Path, names)] if written else [*map(Path, names)]
    for place in places:
        if is_there(place):
            plain = Path(os.path.normpath(place))
            return str(plain if is_there(plain) and plain.samefile(place) else place)
    if _is_hub_id(names[0]):
        return names[0]
    looked = ", ".join(dict.fromkeys(os.path.normpath(place) for place in places))
    raise ModelError(
        f"the adapter {name!r} needs its base model {names[0]!r}, but there is no such folder (tried {looked})",
        f"Restore that folder, or set its path as base_model_name_or_path in {path / ADAPTER_CONFIG}.",
        field="model.name",
    )


def _noted_by_run(path: Path) -> str:
    """What the run that an adapter lies in calls its base, maybe an absolute path; "" outside a run."""
    model = _manifest_beside(path).get("model")
    return str(model.get("base") or "") if isinstance(model, dict) else ""


def _manifest_beside(path: Path) -> dict[str, Any]:
    """The manifest of the run whose result a folder is; empty outside a run."""
    try:
        return read_json_object(path.parent / "manifest.json")
    except (OSError, JsonError):
        return {}


def portable_name(location: Location, folder: Path) -> str:
    """The name of the base for the config of an adapter in `folder`, so that it is found on other machines, too.

    Hub ids and names of embedded models stay; a folder becomes its path relative to `folder`, with forward slashes.
    """
    if location.base_name.startswith(PREFIX) or not Path(location.base).exists():
        return location.base_name
    return _path_from(folder, Path(location.base))


def portable_path(name: str, folder: Path) -> str:
    """A model's name for files that are saved in `folder`, without absolute paths.

    Relative paths and hub ids stay; an absolute path becomes relative to `folder`.
    """
    path = Path(expanded(name))
    return _path_from(folder, path) if path.is_absolute() else name


def absolute_name(name: str) -> str:
    """A folder's absolute path, so that `portable_path` finds its way; a hub id or embedded model's name as it is."""
    path = Path(expanded(name))
    return str(path.absolute()) if path.exists() else name


def _path_from(folder: Path, path: Path) -> str:
    """A relative path with forward slashes; absolute if the path is on another drive."""
    try:
        return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
    except ValueError:
        return str(path.resolve())


def local_folder(base: str, revision: str | None = None) -> Path | None:
    """The folder of a base: itself, or that of a hub model in the hub's cache; None if it is not on this machine."""
    path = Path(base)
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(base, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def base_hash(base: str, revision: str | None = None) -> str:
    """Hash of the content of a base's weight files; "" if they are not on this machine.

    For the other files that affect a model's outputs, see `prefine.models.loading.identity`.
    """
    folder = local_folder(base, revision)
    if folder is None:
        return ""
    joined = "".join(sha256_of_file(file) for file in weight_files(folder))
    return hashlib.sha256(joined.encode()).hexdigest()


def one_line(error: BaseException) -> str:
    """A library's error for use in a message: its type and the beginning of its text, on one line."""
    return textwrap.shorten(f"{type(error).__name__}: {error}", 200, placeholder=" …")
