"""What a stage's result depends on: its recipe, the contents of its data and models, its parents' results, its code.

Each input has a name and a value. Two lists of inputs say which of them changed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import sys
from collections.abc import Container, Iterator, Mapping
from contextlib import suppress
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any, get_args

from pydantic import AfterValidator, BaseModel

from prefine import __version__
from prefine.data.reading.content import content_hash
from prefine.data.reading.source_names import source_names
from prefine.data.reading.sources import locate
from prefine.errors import DataError, PrefineError, RecipeError
from prefine.evaluation.comparing.task_files import is_task_file, task_files
from prefine.paths import expanded, path_in_recipe
from prefine.pipeline.code_version import code_digest
from prefine.pipeline.digests import KnownDigests, joined_digest
from prefine.recipe.deciding import decides, flat_fields, is_of_readiness
from prefine.recipe.pipeline_stage import STAGE, PipelineStage
from prefine.recipe.sections import Sources

Inputs = dict[str, Any]

_SOURCES = ("data.train", "data.heldout", "heldout_pairs", "report.prompts", "prompts", "pairs", "demonstrations")
_FUNCTION = re.compile(r"([A-Za-z_][\w.]*):[A-Za-z_]\w*")
# What stands before a colon in names of models and functions that are no modules.
_NO_MODULES = ("embedded", "python")
_WIDEST = 40
# Begins the name of a field that does not decide the result.
_FREE = "free "


def stage_inputs(stage: PipelineStage, parents: Mapping[str, str], digests: KnownDigests) -> Inputs:
    """The inputs of a stage by name.

    Args:
        stage: of a checked pipeline.
        parents: stage -> hash of its result, of those that are done.
        digests: for files.

    Raises:
        DataError: a source does not exist, or cannot be read. RecipeError: a reward function's module is not there.
    """
    values = stage.recipe.model_dump(mode="json", round_trip=True)
    values.pop("run", None)
    inputs: Inputs = {"method": stage.method}
    fields = dict(flat_fields(values))
    free = {name for name in fields if not decides(name, stage.recipe)}
    inputs |= {f"{'free' if name in free else 'recipe'} {name}": value for name, value in fields.items()}
    inputs |= {f"force {stage.method}": True} if stage.force else {}
    paths = path_fields(type(stage.recipe))
    try:
        for name in (each for each in fields if each not in free):
            inputs |= _contents(name, fields[name], paths, digests)
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}", "Check its permissions.") from error
    except PrefineError as error:
        error.problem = f"stage {stage.name}: {error.problem}"
        raise
    inputs |= {f"stage {name}": parents[name] for name in stage.parents if name in parents}
    inputs |= {"code": code_digest(stage.method), "prefine": __version__}
    return inputs


def key_of(inputs: Inputs) -> str:
    """One hash of all inputs that decide. The release alone changes nothing: the code counts."""
    decisive = {name: value for name, value in inputs.items() if _counts(name)}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Which inputs differ, in words, in the order of the recipe. `now` may lack parents that are not done yet."""
    return [_words(name, before, now) for name in _differing(before, now) if _counts(name)]


def readiness_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Which thresholds of a reward model's readiness report differ, in words."""
    named = [name for name in _differing(before, now) if is_of_readiness(name.removeprefix(_FREE))]
    return [_words(name, before, now) for name in named]


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [name for name in dict.fromkeys([*now, *before]) if before.get(name) != now.get(name)]


def _counts(name: str) -> bool:
    """Whether an input decides the result."""
    return name != "prefine" and not name.startswith(_FREE)


def _words(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    kind, _, what = name.partition(" ")
    match kind:
        case "recipe" | "free" | "method":
            if name not in before:
                return f"{what} is {_shown(now[name])}, and was not a field before"
            if name not in now:
                return f"{what} was {_shown(before[name])}, and is not a field any more"
            return f"{what or kind} was {_shown(before[name])} and is {_shown(now[name])}"
        case "content":
            return f"the content of {what} has changed"
        case "stage":
            return f"the result of stage {what} has changed"
        case "force":
            return "force has changed"
    release = f"{before.get('prefine')} → {now.get('prefine')}"
    same = before.get("prefine") == now.get("prefine")
    return f"prefine's code of this stage has changed{'' if same else f' ({release})'}"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 1]}…"


@cache
def path_fields(model: type[BaseModel]) -> frozenset[str]:
    """The fields of a recipe that may hold paths, dotted, without places in lists."""
    found: set[str] = set()
    for name, field in model.model_fields.items():
        parts = [*_parts(field.annotation), *field.metadata]
        if any(isinstance(each, AfterValidator) and each.func is path_in_recipe for each in parts):
            found.add(name)
        for each in parts:
            if isinstance(each, type) and issubclass(each, BaseModel):
                found |= {f"{name}.{inner}" for inner in path_fields(each)}
    return frozenset(found)


def _parts(annotation: Any) -> Iterator[Any]:
    """A type, and all that it is made of."""
    yield annotation
    for each in get_args(annotation):
        yield from _parts(each)


def _contents(name: str, value: Any, paths: Container[str], digests: KnownDigests) -> Inputs:
    """Hashes of the content that a field's value names: data, models, templates, functions.

    Args:
        name: of the field, dotted.
        paths: see `path_fields`. In other fields only a text with / or . counts as a path: their words are not files
            that happen to have their name.
    """
    if name in _SOURCES and value:
        return {f"content {each}": digest for each, digest in _source_digests(value, digests)}
    texts = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    found: Inputs = {}
    for text in texts:
        if isinstance(text, dict):  # further reward sources
            for inner, item in text.items():
                found |= _contents(f"{name}.{inner}", item, paths, digests)
        elif isinstance(text, str) and not text.startswith(STAGE):
            function = _FUNCTION.fullmatch(text) if name.startswith("reward") else None
            digest: str | None = None
            if function is not None and function[1] not in _NO_MODULES and not Path(text).exists():
                digest = _module_digest(name, text, function[1], digests)
            elif name == "lm_eval" and is_task_file(text) and Path(text).exists():
                digest = joined_digest({file.name: digests.of_file(file) for file in task_files(text)})
            elif name in paths or "/" in text or "." in text:
                digest = _digest_of(text, digests)
            found |= {} if digest is None else {f"content {text}": digest}
    return found


def _source_digests(sources: Sources, digests: KnownDigests) -> Iterator[tuple[str, str]]:
    for source in [sources] if isinstance(sources, str) else sources:
        parts = locate(source_names(source)[0])
        yield (
            source,
            hashlib.sha256("".join(content_hash(each, digests.of_file) for each in parts).encode()).hexdigest(),
        )


def _digest_of(text: str, digests: KnownDigests) -> str | None:
    """The hash of a file or a folder that a value names; None if it names none that is here."""
    path = Path(expanded(text))
    if not text or not path.exists():
        return None
    inside = path / "model"  # a run's other files change after it has finished
    return digests.of_path(inside if (path / "manifest.json").is_file() and inside.is_dir() else path)


def _module_digest(field: str, value: str, module: str, digests: KnownDigests) -> str | None:
    """The hash of a function's module; None if it has no file, as a part of Python itself.

    Raises:
        RecipeError: there is no such module.
    """
    found = _spec_of(module)
    if found is None:
        raise RecipeError(
            f"{field} is {value}, and there is no module {module}",
            "Write module:function, with the module in the working directory or installed.",
        )
    return digests.of_file(Path(found.origin)) if found.origin is not None and Path(found.origin).is_file() else None


def _spec_of(module: str) -> ModuleSpec | None:
    """Where Python would find a module, from the working directory first, as training does. Nothing is imported."""
    first, *rest = module.split(".")
    importlib.invalidate_caches()
    found = PathFinder.find_spec(first, [str(Path.cwd()), *sys.path])
    if found is None:
        with suppress(ValueError):  # a module in memory that was made by hand
            found = importlib.util.find_spec(first)
    for part in rest:
        places = None if found is None else found.submodule_search_locations
        found = None if places is None else PathFinder.find_spec(part, list(places))
    return found
