"""Reads recipes: a YAML file, then `--set` overrides, then a strict check against a pydantic model.

Independent of stages. All errors in a recipe are reported at once, each in a line with the file or the override, the
dotted field, the value, the rule and the remedy.

The YAML is PyYAML's safe subset without its surprises: `1e-5` is a number, `12:30` and `2026-01-01` are text, `012` is
text and not ten, and a duplicate key is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from prefine.errors import RecipeError, all_of
from prefine.recipe.problems import describe, joined
from prefine.recipe.shipped import shipped_pipelines, shipped_recipes

R = TypeVar("R", bound=BaseModel)

# A recipe is a page of text; a data file or a device named instead is refused at once. PyYAML needs about a kilobyte
# for each value, so these limits bound its memory as well.
_MAX_RECIPE_BYTES = 256 * 1024
# With every alias written out: 256 bytes of aliases of aliases can stand for a billion values.
_MAX_EXPANDED_VALUES = 100_000
_MAX_EXPANDED_CHARACTERS = 4 * _MAX_RECIPE_BYTES


class RecipeSection(BaseModel):
    """Base of recipe models: unknown fields, values of the wrong type and non-finite numbers are refused."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        validate_default=True,
        protected_namespaces=(),
    )


Assignment = tuple[tuple[str, ...], Any, str]
"""A field's keys, its new value, and the name of its origin for messages."""


def load_recipe(path: Path | None, overrides: Sequence[str], model: type[R]) -> R:
    """Read a recipe and check it.

    Args:
        path: a YAML file; None, like an empty file, stands for the defaults.
        overrides: `a.b=value` each, the value in YAML (`a.b=null`, `a=[x, y]`); the last one for a field wins.
        model: the recipe's pydantic model, with `extra="forbid"` (see `RecipeSection`).

    Raises:
        RecipeError: the file cannot be read, overrides cannot be parsed, or fields are not valid; the last two list all
            errors.
    """
    values = {} if path is None else _read_mapping(path)
    return checked_recipe(values, parsed_overrides(overrides), model, "recipe" if path is None else str(path))


def checked_recipe(values: dict[str, Any], assignments: Sequence[Assignment], model: type[R], source: str) -> R:
    """A recipe from its values.

    Args:
        values: set by the recipe; changed by the assignments.
        assignments: overrides; the last one for a field wins.
        model: see `load_recipe`.
        source: name of the values' origin for messages.

    Raises:
        RecipeError: see `load_recipe`.
    """
    assign(values, assignments)
    try:
        # JSON has only text, numbers, lists and mappings, and lets a strict model read a path or a tuple from them.
        text = json.dumps(values)
        return model.model_validate_json(text, strict=True)
    except ValidationError as error:
        set_by = {keys: origin for keys, _, origin in assignments}
        raise joined(describe(error, model, source, set_by)) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise RecipeError(
            f"{source}: a value is neither text, number, list nor mapping ({error})", "Write it as plain YAML."
        ) from error


def resolved_yaml(recipe: BaseModel) -> str:
    """The complete recipe, defaults included, as YAML that `load_recipe` reads back to an equal object."""
    values = recipe.model_dump(mode="json", round_trip=True)
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**16)


def yaml_value(value: Any) -> str:
    """A JSON value as YAML on one line, as `resolved_yaml` writes it."""
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=2**16)
    return text.removesuffix("...\n").rstrip("\n")


def parsed_overrides(overrides: Sequence[str]) -> list[Assignment]:
    """`--set` overrides as assignments. Raises RecipeError: some cannot be parsed; lists all of them."""
    parsed = zip(_parse_overrides(overrides), overrides, strict=True)
    return [(keys, value, f"--set {override}") for (keys, value), override in parsed]


def assign(values: dict[str, Any], assignments: Sequence[Assignment]) -> None:
    """Change a recipe's values in place; sections that are absent or null are created.

    Raises:
        RecipeError: a value is in the place of a section.
    """
    for keys, value, origin in assignments:
        _set(values, keys, value, origin)


def recipe_values(path: Path) -> dict[str, Any]:
    """The values that a recipe file sets, not validated. Raises RecipeError if it is not YAML."""
    return _read_mapping(path)


# --- YAML ------------------------------------------------------------------------------------------------------

_TAG = "tag:yaml.org,2002:"
_SCALARS = {
    "bool": ("^(?:yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)$", "yYnNtTfFoO"),
    "int": ("^[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$", "-+0123456789"),
    "float": (
        r"^[-+]?(?:(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+"
        r"|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$",
        "-+0123456789.",
    ),
    "merge": ("^<<$", "<"),
    "null": ("^(?:~|null|Null|NULL|)$", "~nN\0"),
}


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    table: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    for name, (pattern, firsts) in _SCALARS.items():
        for first in firsts:
            table.setdefault("" if first == "\0" else first, []).append((_TAG + name, re.compile(pattern)))
    return table


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = _resolvers()


class _Dumper(yaml.SafeDumper):
    # The loader's rules, so that text that looks like a number is quoted exactly when necessary.
    yaml_implicit_resolvers = _resolvers()

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # PyYAML's plain and single-quoted styles lose some line breaks (U+0085); its double-quoted style keeps all.
    return dumper.represent_scalar(_TAG + "str", text, style=None if text.isprintable() else '"')


_Dumper.add_representer(str, _represent_text)


def _read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_RECIPE_BYTES + 1)
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        remedy = "Check the path."
        if path.stem in shipped_recipes() | shipped_pipelines():
            remedy = f"Check the path, or write it first: prefine recipe {path.stem} > {path.name}"
        raise RecipeError(f"There is no recipe {path}", remedy) from None
    except IsADirectoryError:
        raise RecipeError(f"{path} is a folder, not a recipe", "Name the YAML file in it.") from None
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}", "Check the file and its permissions.") from error
    except UnicodeDecodeError:
        raise RecipeError(f"{path} is not a text file in UTF-8", "Name a YAML file.") from None
    if len(content) > _MAX_RECIPE_BYTES:
        raise RecipeError(
            f"{path} is larger than {_MAX_RECIPE_BYTES // 1024} KiB, too large for a recipe", "Name a YAML file."
        )
    value = _parse(text, str(path), "Correct the file.")
    if value is None:
        return {}
    if not isinstance(value, dict):
        kind = "a list" if isinstance(value, list) else "a single value"
        raise RecipeError(f"{path} holds {kind}, not fields", "Write `field: value` lines.")
    return value


def _parse(text: str, source: str, remedy: str) -> Any:
    """The value of one YAML document; errors are RecipeErrors with the source and the line."""
    loader: _Loader | None = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        values, characters = _expanded_size(node, {}, source, remedy)
        if values > _MAX_EXPANDED_VALUES or characters > _MAX_EXPANDED_CHARACTERS:
            raise RecipeError(
                f"{source}: its aliases (*name) stand for more than {_MAX_EXPANDED_VALUES} values or "
                f"{_MAX_EXPANDED_CHARACTERS // 1024} KiB of text",
                "Write the values out.",
            )
        for key in _repeated_keys(node, set()):
            line = key.start_mark.line + 1
            raise RecipeError(f"{source}, line {line}: {key.value} is given twice", "Remove one of the two.")
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line_text = f", line {mark.line + 1}" if mark else ""
        raise RecipeError(f"{source}{line_text}: invalid YAML: {error.problem}", remedy) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise RecipeError(f"{source}, line {line}: a control character", remedy) from error
    except RecursionError as error:
        raise RecipeError(f"{source}: invalid YAML: nested too deep", remedy) from error
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        # PyYAML's errors for tags that do not fit (`!!int x`, `!!bool x`) and for numbers of 5,000 digits.
        raise RecipeError(f"{source}: invalid YAML: a value does not fit its tag", remedy) from error
    finally:
        if loader is not None:
            loader.dispose()


def _expanded_size(
    node: yaml.Node, known: dict[int, tuple[int, int] | None], source: str, remedy: str
) -> tuple[int, int]:
    """Values and characters below `node` after expanding every alias; each node is visited once.

    Args:
        known: sizes of nodes by identity; None while a node's parts are counted.

    Raises:
        RecipeError: an anchor contains itself.
    """
    if id(node) not in known:
        known[id(node)] = None
        values, characters = 1, len(node.value) if isinstance(node, yaml.ScalarNode) else 0
        parts = () if isinstance(node, yaml.ScalarNode) else node.value
        for part in parts:
            for each in part if isinstance(part, tuple) else (part,):
                more = _expanded_size(each, known, source, remedy)
                values, characters = values + more[0], characters + more[1]
        known[id(node)] = values, characters
    size = known[id(node)]
    if size is None:
        line = node.start_mark.line + 1
        raise RecipeError(f"{source}, line {line}: an anchor (&name) contains itself", remedy)
    return size


def _repeated_keys(node: yaml.Node, seen: set[int]) -> Iterator[yaml.ScalarNode]:
    """Duplicate keys of mappings anywhere below `node`."""
    if id(node) in seen:  # an alias
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _repeated_keys(item, seen)
    elif isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in keys:
                    yield key
                keys.add(key.value)
            yield from _repeated_keys(value, seen)


# --- Overrides -------------------------------------------------------------------------------------------------


def _parse_overrides(overrides: Sequence[str]) -> list[tuple[tuple[str, ...], Any]]:
    """Each override as its keys and its value.

    Raises:
        RecipeError: some cannot be parsed; lists all of them.
    """
    parsed: list[tuple[tuple[str, ...], Any]] = []
    errors: list[RecipeError] = []
    for override in overrides:
        try:
            parsed.append(_parse_override(override))
        except RecipeError as error:
            errors.append(error)
    if errors:
        raise all_of(errors)
    return parsed


def _parse_override(override: str) -> tuple[tuple[str, ...], Any]:
    """`a.b=value` as (("a", "b"), value)."""
    name, equals, text = override.partition("=")
    keys = tuple(key.strip() for key in name.split("."))
    if not equals or not all(keys):
        raise RecipeError(f"--set {override} is not of the form field=value", "Write --set section.field=value.")
    value = _parse(text, f"--set {override}", "Quote the value, once for the shell and once for YAML.")
    if value is None and text.strip().startswith("#"):
        value = text.strip()  # a comment in a file, but an override has none
    return keys, value


def _set(values: dict[str, Any], keys: tuple[str, ...], value: Any, origin: str) -> None:
    section = values
    for depth, key in enumerate(keys[:-1], start=1):
        # A section that is absent or null is created here.
        inner = section.get(key)
        if inner is not None and not isinstance(inner, dict):
            name = ".".join(keys[:depth])
            found = json.dumps(inner, default=str)
            raise RecipeError(f"{origin}: {name} is {found}, not a section", f"Set {name} itself.")
        copy = dict(inner or {})  # another section may be an alias of it
        section[key] = copy
        section = copy
    section[keys[-1]] = value
