"""The pipeline file: stages that train, evaluate, export and report, each with its own recipe.

A stage names another one as `stage:NAME` where a recipe names a model or a run; the graph follows from these names.
A training stage's fields are exactly those of its method's recipe, besides `run`, which is the stage's folder. All
errors are reported at once, each with the stage, the field, the value, the rule and the remedy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from prefine.errors import RecipeError, all_of
from prefine.recipe.loading import Assignment, RecipeSection, assign, checked_recipe, parsed_overrides, recipe_values
from prefine.recipe.pipeline_methods import EvaluateRecipe, ExportRecipe, ReportRecipe, as_list
from prefine.recipe.pipeline_stage import (
    METHODS,
    STAGE,
    PipelineStage,
    is_pipeline,
    nearest,
    read_stage,
    references_of,
    referred,
    replaced,
)
from prefine.recipe.registry import RECIPES
from prefine.recipe.sections import RunFolder
from prefine.recipe.stage import StageRecipe

# Last names of the fields that hold a model or a run, by the methods that they may name.
_REWARDS = ("reward",)
_POLICIES = tuple(method for method in RECIPES if method not in _REWARDS)
_REFERENCES: dict[tuple[str, ...], tuple[str, ...]] = {
    ("model", "name"): tuple(RECIPES),
    ("reward", "name"): _REWARDS,
    ("reward", "more", "name"): _REWARDS,
    ("reward", "judge"): _REWARDS,
    ("candidate",): _POLICIES,
    ("against",): _POLICIES,
    ("reference",): _POLICIES,
    ("reward",): _REWARDS,
    ("model",): tuple(RECIPES),
    ("runs",): tuple(RECIPES),
}

_UNNAMED = "pipeline"

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=64)]


class PipelineFile(RecipeSection):
    """A pipeline's file. The fields of a stage are those of its method."""

    pipeline: Name | None = Field(None, description="the pipeline's name; null: the name of its file")
    folder: RunFolder | None = Field(None, description="holds a folder for each stage; null: runs/NAME")
    stages: dict[Name, dict[str, Any]] = Field(min_length=1, description="name -> method, and its recipe's fields")


@dataclass(frozen=True)
class Pipeline:
    """A checked pipeline.

    Attributes:
        name: in the file, or the file's own.
        folder: that holds the folders of its stages.
        stages: by name, each after its parents.
        file: that it was read from; None if it was given as values.
    """

    name: str
    folder: Path
    stages: Mapping[str, PipelineStage]
    file: Path | None = None

    def stage(self, name: str, option: str) -> PipelineStage:
        """A stage by name.

        Raises:
            RecipeError: there is none; the message starts with `option`.
        """
        if name not in self.stages:
            raise RecipeError(f"There is no stage {name!r:.60}", nearest(name, list(self.stages)), field=option)
        return self.stages[name]

    def descendants(self, name: str) -> list[str]:
        """The stages that need this one, directly or not, in order."""
        found = [name]
        for each in self.stages.values():
            if set(each.parents) & set(found):
                found.append(each.name)
        return found[1:]

    def in_place(self, name: str) -> RecipeSection:
        """A stage's recipe with the folders of the stages that it names, as it is run."""
        return self._with_names(name, lambda parent: str(self.stages[parent].folder))

    def with_first_models(self, name: str) -> RecipeSection:
        """A stage's recipe with, for each stage that it names, the model that this one's training begins with.

        Such a model is there before any stage has run.
        """
        return self._with_names(name, self._first_model)

    def _first_model(self, name: str) -> str:
        recipe = self.stages[name].recipe
        if not isinstance(recipe, StageRecipe):
            raise TypeError(f"stage {name} does not train")  # a valid pipeline has no such reference
        parent = referred(recipe.model.name)
        return recipe.model.name if parent is None else self._first_model(parent)

    def _with_names(self, name: str, named: Callable[[str], str]) -> RecipeSection:
        recipe = self.stages[name].recipe
        # Without defaults: some follow from other fields, and a check may ask which fields were set.
        values = recipe.model_dump(mode="json", round_trip=True, exclude_unset=True)
        return type(recipe).model_validate_json(json.dumps(replaced(values, named)), strict=True)


def load_pipeline(path: Path, overrides: Sequence[str] = ()) -> Pipeline:
    """Read a pipeline's file and check it, with every stage.

    Args:
        path: a YAML file.
        overrides: `--set` values: `folder=runs/x`, `stages.sft.training.max_steps=5`.

    Raises:
        RecipeError: it cannot be read or is not valid; lists all errors.
    """
    values = recipe_values(path)
    if not is_pipeline(values):
        raise RecipeError(
            f"{path} has no stages: it is not a pipeline",
            "A recipe of one stage has a verb of its own, such as prefine sft; docs/pipeline.md shows a pipeline.",
        )
    return checked_pipeline(values, parsed_overrides(overrides), str(path), path)


def name_of_file(path: Path) -> str:
    """The name of a pipeline whose file says none: the file's, without its ending, as a name of a folder."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", path.stem).strip("-_")[:64] or _UNNAMED


def checked_pipeline(
    values: dict[str, Any], assignments: Sequence[Assignment], source: str, path: Path | None = None
) -> Pipeline:
    """A pipeline from its values; see `load_pipeline`.

    Args:
        values: set by the file; changed by the assignments.
        assignments: overrides; the last one for a field wins.
        source: name of the values' origin for messages.
        path: of the file that the values are from, if they are from one.
    """
    _require_known_stages(values, assignments)
    # Fields of stages are set after a stage's own recipe file, which they override.
    of_stages = [each for each in assignments if each[0][0] == "stages" and len(each[0]) > 2]
    others = [each for each in assignments if each not in of_stages]
    assign(values, others)
    file = checked_recipe(values, [], PipelineFile, source)
    title = file.pipeline or (_UNNAMED if path is None else name_of_file(path))
    folder = Path(file.folder or f"runs/{title}")
    stages: dict[str, PipelineStage] = {}
    errors: list[RecipeError] = list(_same_folders(file.stages, source))
    for name, fields in file.stages.items():
        own = [(keys[2:], value, origin) for keys, value, origin in of_stages if keys[1] == name]
        try:
            stages[name] = read_stage(name, fields, own, folder / name, f"{source}: stages.{name}")
        except RecipeError as error:
            errors.append(error)
    errors += [error for stage in stages.values() for error in _reference_errors(stage, file, source)]
    if errors:
        raise all_of([one for error in errors for one in getattr(error, "errors", (error,))])
    return Pipeline(title, folder, _in_order(_with_gates(stages), source), path)


def _reference_errors(stage: PipelineStage, file: PipelineFile, source: str) -> Iterator[RecipeError]:
    for keys, target in references_of(stage.recipe):
        where = f"{source}: stages.{stage.name}: {'.'.join(keys)} is {STAGE}{target}"
        if keys not in _REFERENCES:
            yield RecipeError(f"{where}, but this field does not name a model or a run", "Write another value.")
        elif target not in file.stages:
            close = get_close_matches(target, file.stages, 1)
            known = ", ".join(each for each in file.stages if each != stage.name) or "no others"
            remedy = f"Did you mean {STAGE}{close[0]}?" if close else f"The stages are {known}."
            yield RecipeError(f"{where}, but there is no such stage", remedy)
        else:
            method, allowed = file.stages[target].get("method"), _REFERENCES[keys]
            if method in METHODS and method not in allowed:
                wanted = "a stage of method reward" if allowed == _REWARDS else "a stage that trains a language model"
                if allowed == tuple(RECIPES):
                    wanted = "a stage that trains"
                yield RecipeError(f"{where}, whose method is {method}", f"Name {wanted}.")


def _require_known_stages(values: dict[str, Any], assignments: Sequence[Assignment]) -> None:
    """Refuse a --set for a stage that is not in the file."""
    known = values.get("stages")
    if not isinstance(known, dict):
        return
    for keys, _, origin in assignments:
        if keys[0] == "stages" and len(keys) > 1 and keys[1] not in known:
            raise RecipeError(f"{origin}: there is no stage {keys[1]!r:.60}", nearest(keys[1], list(known)))


def _same_folders(names: Mapping[str, Any], source: str) -> Iterator[RecipeError]:
    """Errors for names that differ in case alone: many file systems would give them one folder."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.lower(), name)
        if other != name:
            yield RecipeError(f"{source}: stages.{name} and stages.{other} differ only in case", "Rename one of them.")


# --- The graph ---------------------------------------------------------------------------------------------------


def _with_gates(stages: Mapping[str, PipelineStage]) -> dict[str, PipelineStage]:
    """The stages with all their parents: an export waits for the gates of its model, a report for what it compares."""
    found = {}
    for stage in stages.values():
        parents = list(stage.references)
        if isinstance(stage.recipe, ExportRecipe):
            parents += [
                each.name
                for each in stages.values()
                if isinstance(each.recipe, EvaluateRecipe)
                and each.recipe.gate is not None
                and each.recipe.candidate == stage.recipe.model
            ]
        if isinstance(stage.recipe, ReportRecipe) and stage.recipe.runs is None:
            parents += [each.name for each in stages.values() if each.trains]
        found[stage.name] = replace(stage, parents=tuple(dict.fromkeys(parents)))
    return found


def _in_order(stages: Mapping[str, PipelineStage], source: str) -> dict[str, PipelineStage]:
    """The stages, each after its parents, else in the order of the file.

    Raises:
        RecipeError: some wait for each other.
    """
    ordered: dict[str, PipelineStage] = {}

    def place(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            circle = " → ".join((*path[path.index(name) :], name))
            raise RecipeError(
                f"{source}: stages wait for each other: {circle} (each names the next one)",
                f"Remove {STAGE}{name} from one of them.",
            )
        if name not in ordered:
            for parent in stages[name].parents:
                place(parent, (*path, name))
            ordered[name] = stages[name]

    for name in stages:
        place(name, ())
    return ordered


def runs_of(recipe: ReportRecipe, pipeline: Pipeline) -> list[str]:
    """The runs that a report stage compares: `stage:NAME` and folders."""
    if recipe.runs is None:
        return [STAGE + stage.name for stage in pipeline.stages.values() if stage.trains]
    return as_list(recipe.runs)
