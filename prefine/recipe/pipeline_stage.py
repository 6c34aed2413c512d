"""One stage of a pipeline's file: its method, its recipe, and the stages that it names."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from prefine.errors import RecipeError
from prefine.recipe.loading import Assignment, RecipeSection, assign, recipe_values
from prefine.recipe.pipeline_methods import EvaluateRecipe, ExportRecipe, ReportRecipe
from prefine.recipe.problems import describe, joined
from prefine.recipe.registry import RECIPES
from prefine.recipe.shipped import shipped_recipes
from prefine.recipe.stage import StageRecipe

STAGE = "stage:"
METHODS: dict[str, type[RecipeSection]] = {
    **RECIPES,
    "evaluate": EvaluateRecipe,
    "export": ExportRecipe,
    "report": ReportRecipe,
}
"""Method -> its recipe, in the order in which stages usually follow each other."""

_OWN_FIELDS = ("method", "recipe", "run", "force")
# Methods whose verb has --force as a field of the stage: PPO uses a reward model whose readiness says no-go.
_FORCIBLE = ("ppo",)


@dataclass(frozen=True)
class PipelineStage:
    """One stage.

    Attributes:
        name: in the file.
        method: a key of METHODS.
        recipe: its recipe, valid. It names other stages as `stage:NAME`; the `run` of a training stage is `folder`.
        folder: of its results.
        references: the stages that its recipe names, in the order of their fields.
        parents: the stages that must be done first: `references`, and for an export the evaluations whose gate may
            stop it.
        force: use a reward model although its readiness report says no-go.
    """

    name: str
    method: str
    recipe: RecipeSection
    folder: Path
    references: tuple[str, ...]
    parents: tuple[str, ...]
    force: bool = False

    @property
    def trains(self) -> bool:
        """Whether its folder is a run's."""
        return isinstance(self.recipe, StageRecipe)

    @property
    def takes_force(self) -> bool:
        """Whether `force` is a key of the stage."""
        return self.method in _FORCIBLE or "force" in type(self.recipe).model_fields


def is_pipeline(values: Mapping[str, Any]) -> bool:
    """Whether a YAML file's values are meant as a pipeline, not as a recipe of one stage."""
    return "stages" in values or "pipeline" in values


def read_stage(
    name: str, fields: dict[str, Any], assignments: Sequence[Assignment], folder: Path, source: str
) -> PipelineStage:
    values = dict(fields)
    own = [each for each in assignments if each[0][0] in _OWN_FIELDS and len(each[0]) == 1]
    assign(values, own)
    method, file = values.pop("method", None), values.pop("recipe", None)
    origins = {keys[0]: origin for keys, _, origin in own}
    if method is None:
        raise RecipeError(f"{source}: method is missing", f"Write one of {', '.join(METHODS)}.")
    if not isinstance(method, str) or method not in METHODS:
        origin = f"{origins['method']}: " if "method" in origins else f"{source}: "
        raise RecipeError(f"{origin}method is {json.dumps(method)}, which is none", nearest(str(method), list(METHODS)))
    model = METHODS[method]
    if "run" in values:
        raise RecipeError(
            f"{source}: run is {json.dumps(values['run'])}, but a stage's folder is {folder}",
            "Leave run out, or change the pipeline's folder.",
        )
    force = values.pop("force", False) if method in _FORCIBLE else False
    if not isinstance(force, bool):
        raise RecipeError(
            f"{source}: force is {json.dumps(force)}, but must be a valid boolean", "Write true or false."
        )
    if file is not None:
        values = _merged(_from_file(file, source), values)
    assign(values, [each for each in assignments if each not in own])
    written = json.loads(json.dumps(values, default=str))
    if issubclass(model, StageRecipe):
        values["run"] = str(folder)
    recipe = _checked(values, assignments, model, name, source)
    _require_named_models(recipe, written, source)
    references = tuple(dict.fromkeys(target for _, target in references_of(recipe)))
    return PipelineStage(name, method, recipe, folder, references, references, force)


def _checked(
    values: dict[str, Any], assignments: Sequence[Assignment], model: type[RecipeSection], name: str, source: str
) -> RecipeSection:
    try:
        return model.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        set_by = {keys: origin for keys, _, origin in assignments}
        found = joined(describe(error, model, source, set_by))
        for each in getattr(found, "errors", (found,)):
            each.remedy = each.remedy.replace("--set ", f"--set stages.{name}.")
        raise found from error
    except (TypeError, ValueError, RecursionError) as error:
        raise RecipeError(
            f"{source}: a value is neither text, number, list nor mapping ({error})", "Write it as plain YAML."
        ) from error


def _from_file(file: Any, source: str) -> dict[str, Any]:
    """The values of the recipe that a stage starts from, a file or the name of one that comes with prefine; no run."""
    if not isinstance(file, str):
        raise RecipeError(
            f"{source}: recipe is {json.dumps(file)}, but must be a file",
            "Write its path, or the name of a shipped one.",
        )
    try:
        path = Path(file).expanduser()
        values = recipe_values(path if path.exists() else shipped_recipes().get(file, path))
    except RecipeError as error:
        raise RecipeError(f"{source}: recipe: {error.problem}", error.remedy) from None
    if is_pipeline(values):
        raise RecipeError(f"{source}: recipe: {file} is a pipeline", "Name the recipe of one stage.")
    values.pop("run", None)
    return values


def _merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Values with changes: a section sets the fields that it names and leaves the others as they are."""
    merged = dict(values)
    for name, value in changes.items():
        before = merged.get(name)
        both = isinstance(before, dict) and isinstance(value, dict)
        merged[name] = _merged(before, value) if both else value  # type: ignore[arg-type]
    return merged


def _require_named_models(recipe: RecipeSection, written: dict[str, Any], source: str) -> None:
    """Refuse defaults that are runs outside the pipeline, such as runs/sft: nobody asked for those."""
    for keys in (("model", "name"), ("reward", "name")):
        section = getattr(recipe, keys[0], None)
        value = getattr(section, keys[1], None)
        section_written = written.get(keys[0])
        is_written = isinstance(section_written, dict) and keys[1] in section_written
        if isinstance(value, str) and value.startswith("runs/") and not is_written:
            raise RecipeError(f"{source}: {'.'.join(keys)} is missing", "Write stage:NAME, or the name of a model.")


def referred(value: Any) -> str | None:
    """The stage that a value names, if any."""
    return value.removeprefix(STAGE) if isinstance(value, str) and value.startswith(STAGE) else None


def references_of(recipe: BaseModel) -> Iterator[tuple[tuple[str, ...], str]]:
    """Fields that name a stage, by their keys without the places in lists, and the stage."""
    yield from _references_in(recipe.model_dump(mode="json"), ())


def _references_in(value: Any, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _references_in(item, (*keys, key))
    elif isinstance(value, list):
        for item in value:
            yield from _references_in(item, keys)
    elif (target := referred(value)) is not None:
        yield keys, target


def replaced(value: Any, named: Callable[[str], str]) -> Any:
    """A value with each `stage:NAME` replaced by `named(NAME)`."""
    if isinstance(value, dict):
        return {key: replaced(item, named) for key, item in value.items()}
    if isinstance(value, list):
        return [replaced(item, named) for item in value]
    target = referred(value)
    return value if target is None else named(target)


def nearest(name: str, known: list[str]) -> str:
    close = get_close_matches(name.lower(), known, 1)
    return f"Did you mean {close[0]}?" if close else f"Write one of {', '.join(known)}."
