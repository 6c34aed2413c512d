"""What a stage's result depends on: its recipe, the contents of its data and models, its parents' results, its code.

Each input has a name and a value. Two lists of inputs say which of them changed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prefine import __version__
from prefine.data.reading.content import content_hash
from prefine.data.reading.source_names import source_names
from prefine.data.reading.sources import locate
from prefine.errors import DataError, PrefineError
from prefine.paths import expanded
from prefine.pipeline.code_version import code_digest
from prefine.pipeline.digests import KnownDigests
from prefine.recipe.pipeline_stage import STAGE, PipelineStage
from prefine.recipe.sections import Sources

Inputs = dict[str, Any]

_SOURCES = ("data.train", "data.heldout", "heldout_pairs", "report.prompts", "prompts", "pairs", "demonstrations")
_FUNCTION = re.compile(r"([A-Za-z_][\w.]*):[A-Za-z_]\w*")
_WIDEST = 40


def stage_inputs(stage: PipelineStage, parents: Mapping[str, str], digests: KnownDigests) -> Inputs:
    """The inputs of a stage by name.

    Args:
        stage: of a checked pipeline.
        parents: stage -> hash of its result, of those that are done.
        digests: for files.

    Raises:
        DataError: a source does not exist, or cannot be read.
    """
    values = stage.recipe.model_dump(mode="json", round_trip=True)
    values.pop("run", None)
    inputs: Inputs = {"method": stage.method}
    inputs |= {f"recipe {name}": value for name, value in _flat(values)}
    inputs |= {f"force {stage.method}": True} if stage.force else {}
    try:
        for name, value in _flat(values):
            inputs |= _contents(name, value, digests)
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}", "Check its permissions.") from error
    except PrefineError as error:
        error.problem = f"stage {stage.name}: {error.problem}"
        raise
    inputs |= {f"stage {name}": parents[name] for name in stage.parents if name in parents}
    inputs |= {"code": code_digest(stage.method), "prefine": __version__}
    return inputs


def key_of(inputs: Inputs) -> str:
    """One hash of all inputs. The release alone changes nothing: the code counts."""
    decides = {name: value for name, value in inputs.items() if name != "prefine"}
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Which inputs differ, in words, in the order of the recipe. `now` may lack parents that are not done yet."""
    names = dict.fromkeys([*now, *before])
    differing = [name for name in names if before.get(name) != now.get(name) and name != "prefine"]
    return [_words(name, before, now) for name in differing]


def _words(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    kind, _, what = name.partition(" ")
    match kind:
        case "recipe" | "method":
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


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _contents(name: str, value: Any, digests: KnownDigests) -> Inputs:
    """Hashes of the content that a field's value names: data, models, templates, functions."""
    if name in _SOURCES and value:
        return {f"content {each}": digest for each, digest in _source_digests(value, digests)}
    texts = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    found: Inputs = {}
    for text in texts:
        if isinstance(text, dict):  # further reward sources
            for inner, item in text.items():
                found |= _contents(f"{name}.{inner}", item, digests)
        elif isinstance(text, str) and not text.startswith(STAGE):
            function = _FUNCTION.fullmatch(text) if name.startswith("reward") else None
            digest = _module_digest(function[1], digests) if function else _digest_of(text, digests)
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
    """The hash of a file, a folder or a module that a value names; None if it names none that is here."""
    if not ("/" in text or "." in text):
        return None  # words of recipes are not files that happen to have their name
    path = Path(expanded(text))
    if not path.exists():
        return None
    inside = path / "model"  # a run's other files change after it has finished
    return digests.of_path(inside if (path / "manifest.json").is_file() and inside.is_dir() else path)


def _module_digest(name: str, digests: KnownDigests) -> str | None:
    first, *rest = name.split(".")
    for base in (Path(first), *(Path(first, *rest[:size]) for size in range(1, len(rest) + 1))):
        if base.with_suffix(".py").is_file():
            return digests.of_file(base.with_suffix(".py"))
    if rest:
        return None  # finding a module of a package imports the package
    found = importlib.util.find_spec(first)
    origin = None if found is None else found.origin
    return digests.of_file(Path(origin)) if origin is not None and Path(origin).is_file() else None
