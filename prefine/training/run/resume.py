"""Checks before a run is resumed: its recipe, model and results are unchanged."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefine.errors import CheckpointError
from prefine.json_reading import JsonError, read_json_object
from prefine.models.loading.identity import Identity
from prefine.recipe.deciding import decides, flat_fields
from prefine.recipe.stage import StageRecipe
from prefine.runs.atomic import JSON, sha256_of_file
from prefine.runs.directory import RunDirectory
from prefine.training.loop.checkpoint import newest_valid

# Fields of a manifest that a resumed run needs, and their types.
_NEEDED = {"stage": str, "status": str, "run_id": str, "recipe": dict, "model": dict, "prepared": dict}
_NEEDED_OF_MODEL = {"compute_dtype": str, "identity": dict}
_NEEDED_OF_DATA = {"key": str, "digests": dict}


def new_run_id() -> str:
    """A random name for a run; its checkpoints hold it."""
    return secrets.token_hex(8)


def read_manifest(run: RunDirectory) -> dict[str, Any] | None:
    """The manifest of a run to resume; None if the run ended before it was written, before its first step.

    Raises:
        CheckpointError: it is damaged. A folder that lost it is not opened: prefine.runs.ownership.refuse_additions.
    """
    if not run.manifest.exists():
        return None
    remedy = "Restore the file from a copy, or start a run under another name."
    try:
        manifest = read_json_object(run.manifest)
    except (OSError, JsonError) as error:
        raise CheckpointError(f"{run.manifest} cannot be used: it {error}", remedy) from error
    lacking = _lacking(manifest, _NEEDED)
    lacking += [] if lacking else _lacking(manifest["model"], _NEEDED_OF_MODEL, "model.")
    lacking += [] if lacking else _lacking(manifest["prepared"], _NEEDED_OF_DATA, "prepared.")
    if lacking:
        raise CheckpointError(
            f"{run.manifest} lacks {lacking[0]}: it is damaged, or from another version of prefine", remedy
        )
    return manifest


def _lacking(values: Mapping[str, Any], needed: Mapping[str, type], prefix: str = "") -> list[str]:
    return [f"{prefix}{name}" for name, kind in needed.items() if not isinstance(values.get(name), kind)]


def require_same_recipe(manifest: Mapping[str, Any], stage: str, recipe: StageRecipe) -> None:
    """Raise CheckpointError if the run is of another stage, or a field that affects its result has changed."""
    finished = manifest["status"] == "finished"
    remedy = "Resume with the same recipe and --set, or start a run under another name."
    if finished:
        remedy = (
            "Start a run under another name (--set run=NEW); to train this run's result further, also add "
            f"--set model.name={recipe.run}."
        )
    if manifest["stage"] != stage:
        raise CheckpointError(f"--resume: {recipe.run} is a run of {manifest['stage']}, not of {stage}", remedy)
    differing = _differences(manifest["recipe"], recipe)
    if differing:
        problem = (
            f"--resume: {recipe.run} is finished, and was trained with another recipe"
            if finished
            else "--resume: the recipe differs from the one this run began with"
        )
        raise CheckpointError(f"{problem} ({', '.join(differing[:3])})", remedy)


def _differences(before: dict[str, Any], recipe: StageRecipe) -> list[str]:
    was, is_now = dict(flat_fields(before)), dict(flat_fields(recipe.model_dump(mode="json")))
    return [
        f"{name} was {was.get(name)!r} and is {is_now.get(name)!r}"
        for name in sorted(was.keys() | is_now.keys())
        if decides(name, recipe) and was.get(name) != is_now.get(name)
    ]


def require_same_model(manifest: Mapping[str, Any], now: Identity, name: str) -> None:
    """Raise CheckpointError if files that the model's outputs depend on have changed since the run began."""
    if changed := now.differences(manifest["model"]["identity"]):
        raise CheckpointError(
            f"--resume: files of {name} have changed since this run began: {', '.join(changed)}",
            "Restore the files, or start a run under another name.",
        )


def result_hashes(run: RunDirectory) -> dict[str, JSON]:
    """Hashes of the model's files and of evaluation.json, for a finished run's manifest.

    README.md has none: users edit it.
    """
    files = sorted(file for file in run.model.iterdir() if file.is_file() and file.name != "README.md")
    return {"model": {file.name: sha256_of_file(file) for file in files}, "evaluation": sha256_of_file(run.evaluation)}


def _require_same_files(model: Path, expected: object) -> None:
    """Raise CheckpointError if files of a finished run's model are missing or changed. Other files may be added."""
    flaws = [] if isinstance(expected, dict) and expected else ["manifest.json does not list its files"]
    for name, sha256 in expected.items() if isinstance(expected, dict) else ():
        file = model / name
        if not file.is_file():
            flaws.append(f"{name} is missing")
        elif sha256_of_file(file) != sha256:
            flaws.append(f"{name} has changed")
    if flaws:
        raise CheckpointError(
            f"{model} is not as this run saved it: {', '.join(flaws)}",
            f"Restore it from a copy; or delete {model}, and --resume makes it again.",
        )


def is_whole(run: RunDirectory, manifest: Mapping[str, Any]) -> bool:
    """Whether all results of a finished run exist.

    Raises:
        CheckpointError: files of the model are missing or have changed; or results are missing, and there is no
            checkpoint to make them from.
    """
    result = manifest["result"] if isinstance(manifest.get("result"), dict) else {}
    if run.model.is_dir():
        _require_same_files(run.model, result.get("model"))
    evaluated = run.evaluation.is_file() and sha256_of_file(run.evaluation) == result.get("evaluation")
    if run.model.is_dir() and evaluated:
        return True
    if newest_valid(run.checkpoints, run.run_id) is None:
        lost = run.evaluation.name if run.model.is_dir() else run.model.name
        raise CheckpointError(
            f"{run.path} is finished, but its {lost} is missing or damaged, and it holds no valid checkpoint",
            "Restore it from a copy, or start a run under another name.",
        )
    return False
