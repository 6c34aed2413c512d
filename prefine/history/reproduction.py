"""The recipe and the command that make a run again, and what differs now from when it was made."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefine import __version__
from prefine.data.reading.content import content_hash
from prefine.data.reading.source_names import SAMPLE, source_names
from prefine.data.reading.sources import locate
from prefine.errors import CheckpointError, PrefineError
from prefine.models.loading.identity import identity_of
from prefine.models.loading.location import base_hash, locate_model
from prefine.recipe.loading import checked_recipe, resolved_yaml
from prefine.recipe.registry import RECIPES
from prefine.report.facts import dictionaries, mapping, read_run, text
from prefine.run import Run
from prefine.runs.directory import run_provenance


@dataclass(frozen=True)
class Reproduction:
    """How to make a run again.

    Attributes:
        recipe: its whole recipe as YAML, in the number type that was measured.
        command: what to type, with the recipe in a file of the given name.
        differences: what is not as it was, in sentences; none: the same bits are to be expected on the same processor.
    """

    recipe: str
    command: str
    differences: list[str]


def reproduction_of(folder: Path, file: Path, again: Path) -> Reproduction:
    """How to make a run again.

    Args:
        folder: of the run.
        file: where the recipe will be.
        again: folder of the new run.

    Raises:
        CheckpointError: it holds no run, or one whose manifest has no recipe.
        RecipeError: this release does not accept its recipe.
    """
    run = Run(folder)
    stage = run.stage
    if stage not in RECIPES or not run.recipe:
        raise CheckpointError(f"{folder} has no recipe of a known stage", "Name another run.")
    manifest = read_run(folder).manifest
    values = {**run.recipe, "run": str(again)}
    measured = text(mapping(manifest.get("model")).get("compute_dtype"))
    if measured in ("float32", "bfloat16"):
        # A measurement may choose another type next time.
        values["model"] = {**mapping(values.get("model")), "dtype": measured}
    recipe = checked_recipe(values, [], RECIPES[stage], f"recipe of {folder}")
    command = shlex.join(["prefine", stage, str(file), *(["--force"] if _was_forced(manifest) else [])])
    found = [*_versions(manifest), *_data(manifest), *_model(manifest), *_rewards(manifest), *_functions(manifest)]
    return Reproduction(resolved_yaml(recipe), command, found)


def _versions(manifest: Mapping[str, Any]) -> Iterator[str]:
    now = run_provenance([])
    was = {"prefine": manifest.get("prefine"), "python": manifest.get("python"), **mapping(manifest.get("libraries"))}
    is_now = {"prefine": __version__, "python": now["python"], **mapping(now["libraries"])}
    for name, before in was.items():
        if before != is_now.get(name):
            yield f"{name} was {before or 'missing'} and is {is_now.get(name) or 'missing'}"
    for name, what in (("git_commit", "the commit of the current folder"), ("platform", "the system")):
        if manifest.get(name) != now[name]:
            yield f"{what} was {manifest.get(name)} and is {now[name]}"


def _data(manifest: Mapping[str, Any]) -> Iterator[str]:
    for part in mapping(manifest.get("data")).values():
        for file in dictionaries(mapping(part).get("files")):
            name, before = str(file.get("path")), file.get("sha256")
            try:
                now = [
                    content_hash(each) for each in locate(source_names(name)[0] if name.startswith(SAMPLE) else name)
                ]
            except (PrefineError, OSError):
                yield f"{name} is no longer there"
                continue
            if now != [before]:
                yield f"the content of {name} has changed"


def _model(manifest: Mapping[str, Any]) -> Iterator[str]:
    section = mapping(mapping(manifest.get("recipe")).get("model"))
    name, revision = text(section.get("name")) or "", text(section.get("revision"))
    before = mapping(mapping(manifest.get("model")).get("identity"))
    try:
        location = locate_model(name)
        now = identity_of(location, revision, base_hash(location.base, revision))
    except (PrefineError, OSError):
        yield f"the model {name} is no longer there"
        return
    for part in now.differences(before) if before else []:
        yield f"{name}: {part} differs"


def _rewards(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Of the models that score, whose content a run does not record: whether they are there, and older than the run."""
    reward = mapping(mapping(manifest.get("recipe")).get("reward"))
    more = [
        (f"reward.more[{place}].name", each.get("name")) for place, each in enumerate(dictionaries(reward.get("more")))
    ]
    for field, value in (("reward.name", reward.get("name")), *more, ("reward.judge", reward.get("judge"))):
        name = text(value)
        if not name or field in mapping(manifest.get("code")):
            continue
        try:
            location = locate_model(name)
            weights = (location.adapter or Path(location.base)).glob("*.safetensors")
            newest = max((file.stat().st_mtime for file in weights), default=0.0)  # 0: on the hub
            began = datetime.fromisoformat(text(manifest.get("started")) or "")
        except (PrefineError, OSError):
            yield f"{field} {name} is no longer there"
            continue
        except ValueError:
            continue
        if newest > (began if began.tzinfo else began.replace(tzinfo=UTC)).timestamp():
            yield f"{field} {name} may have changed: its files are newer than the run"


def _was_forced(manifest: Mapping[str, Any]) -> bool:
    """Whether a check stopped the run until --force overrode it: it says so among its warnings."""
    said = manifest.get("overridden")
    return isinstance(said, list) and any("because of --force" in str(each) for each in said)


def _functions(manifest: Mapping[str, Any]) -> Iterator[str]:
    for field, known in mapping(manifest.get("code")).items():
        yield f"{field} {text(mapping(known).get('name'))} is a function of yours: it must be the same one"


def commented(made: Reproduction, folder: Path) -> str:
    """The recipe with its command and the differences as comments."""
    lines = [f"# {made.command}", f"# Makes {folder} again."]
    lines += [f"# Differs: {each}." for each in made.differences] or ["# Nothing differs from when it was made."]
    return "\n".join([*lines, made.recipe])
