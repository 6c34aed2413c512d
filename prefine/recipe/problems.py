"""Describes the errors in a recipe, a line for each: the field, the value, the rule, the remedy."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticUndefined

from prefine.errors import RecipeError, all_of
from prefine.recipe.effects import SeveralRulesError
from prefine.recipe.foreign_names import meaning, section_elsewhere

Location = tuple[int | str, ...]

_MAX_VALUE_CHARACTERS = 60
_QUOTED = re.compile(r"'([^']*)'")
_RULES_OVER_SECTIONS = ("value_error", "assertion_error", "missing")
_REMEDIES = {
    "bool_type": "Write true or false.",
    "int_type": "Write a whole number, without quotes.",
    "float_type": "Write a number, without quotes.",
    "string_type": 'Put it in quotes: "…".',
    "list_type": "Write a list: [a, b].",
    "tuple_type": "Write a list: [a, b].",
    "set_type": "Write a list: [a, b].",
}


@dataclass(frozen=True)
class Mistake:
    """One error in a recipe.

    Attributes:
        source: the file or the override that it comes from.
        text: the field, the value and the rule, without a final full stop.
        remedy: what to do, as a sentence.
    """

    source: str
    text: str
    remedy: str


def joined(problems: Sequence[Mistake]) -> RecipeError:
    """All problems as one error; several have a line each."""
    return all_of([RecipeError(f"{problem.source}: {problem.text}", problem.remedy) for problem in problems])


def describe(
    error: ValidationError, model: type[BaseModel], source: str, set_by: Mapping[tuple[str, ...], str]
) -> list[Mistake]:
    """A pydantic validation error as problems in the recipe's terms, in the order of its fields.

    Args:
        error: raised by the model.
        model: the recipe's model, for suggestions of similar names.
        source: the recipe's file.
        set_by: a field's keys -> the override that set it.
    """
    problems: dict[tuple[str, str], Mistake] = {}
    for details in _one_rule_each(error.errors(include_url=False)):
        field, sections = _locate(model, details["loc"])
        origin = _origin(details, source, set_by)
        text, remedy = _explain(details, field, sections, model)
        # Each branch of a union reports an error of its own: the rules of one field are alternatives.
        key = (field, details["msg"] if details["type"] in _RULES_OVER_SECTIONS else _shown(details["input"]))
        earlier = problems.get(key)
        if earlier and " must be " in text:
            text = f"{earlier.text} or {text.partition(' must be ')[2]}"
        problems[key] = Mistake(origin, text, remedy)
    return list(problems.values())


def _one_rule_each(found: Sequence[ErrorDetails]) -> Iterator[ErrorDetails]:
    """The same errors; one with several rules becomes one for each."""
    for details in found:
        error = details.get("ctx", {}).get("error")
        if isinstance(error, SeveralRulesError):
            for rule in error.rules:
                yield {**details, "msg": f"Value error, {rule}"}
        else:
            yield details


def _origin(details: ErrorDetails, source: str, set_by: Mapping[tuple[str, ...], str]) -> str:
    names = tuple(str(part) for part in details["loc"])
    for keys, override in reversed(list(set_by.items())):
        within_override = names[: len(keys)] == keys
        # An override may put a value in the place of a section; a rule about a whole section belongs to the file, too.
        makes_section = names and details["type"] not in _RULES_OVER_SECTIONS and keys[: len(names)] == names
        if within_override or makes_section:
            return override
    return source


def _explain(
    details: ErrorDetails, field: str, sections: list[type[BaseModel]], model: type[BaseModel]
) -> tuple[str, str]:
    """The text and the remedy of one problem."""
    kind, value, message = details["type"], details["input"], " ".join(details["msg"].split())
    if kind == "extra_forbidden":
        return f"{field} is not a field", _nearest(field, sections, model)
    if kind == "missing":
        return f"{field} is missing", f"Write it in the recipe, or pass --set {field}=VALUE."
    if kind in ("value_error", "assertion_error"):
        rule = message.partition(", ")[2]
        shown = "" if isinstance(value, dict) else f" is {_shown(value)}"
        return f"{field}{shown}: {rule}" if field else rule, "Change one of the fields it names."
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        fields = _field_names(model, details["loc"])
        return f"{field} is {_shown(value)}, but must be a section", (
            f"Its fields are {', '.join(fields)}." if fields else "Write `name: value` lines below it."
        )
    if kind == "json_invalid":
        return "a value has half a surrogate pair (\\ud800 to \\udfff)", "Remove that character."
    rule = re.sub(r"^Input should (be )?", "must be ", message).replace("must be have", "must have")
    text = f"{field} is {_shown(value)}, but {rule}"
    if kind in ("literal_error", "enum"):
        return text, _nearest_choice(value, _QUOTED.findall(str(details.get("ctx", {}).get("expected", ""))))
    return text, _REMEDIES.get(kind) or _default_remedy(model, details["loc"])


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= _MAX_VALUE_CHARACTERS else text[: _MAX_VALUE_CHARACTERS - 1] + "…"


# --- The schema ------------------------------------------------------------------------------------------------


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that a value of this annotation may be or contain."""
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [section for argument in get_args(annotation) for section in _sections_in(argument)]


def _steps(model: type[BaseModel], location: Location) -> Iterator[tuple[str, Any, list[type[BaseModel]]]]:
    """Walk a location: for each part its name, the annotation of its field, and the sections it is looked up in.

    pydantic adds the names of a union's branches to the parts; they are not fields and are left out.
    """
    sections: list[type[BaseModel]] = [model]
    annotation: Any = model
    for part in location:
        fields = [section.model_fields[str(part)] for section in sections if part in section.model_fields]
        if fields:
            yield f".{part}", fields[0].annotation, sections
            annotation = fields[0].annotation
            sections = _sections_in(annotation)
        elif isinstance(part, int):
            yield f"[{part}]", annotation, sections
        elif get_origin(annotation) in (dict, Mapping):
            yield f".{part}", annotation, sections
            annotation = get_args(annotation)[-1]
        elif tagged := [section for section in sections if section.__name__ == part]:
            sections = tagged
        elif sections:
            yield f".{part}", annotation, sections  # an unknown field


def _locate(model: type[BaseModel], location: Location) -> tuple[str, list[type[BaseModel]]]:
    """A location's dotted name, and the sections that its last name is looked up in."""
    steps = list(_steps(model, location))
    return "".join(name for name, _, _ in steps).removeprefix("."), steps[-1][2] if steps else [model]


def _field_names(model: type[BaseModel], location: Location) -> list[str]:
    steps = list(_steps(model, location))
    sections = _sections_in(steps[-1][1]) if steps else [model]
    return [name for section in sections for name in section.model_fields]


def _default_remedy(model: type[BaseModel], location: Location) -> str:
    name = str(location[-1]) if location else ""
    for section in _locate(model, location)[1]:
        field = section.model_fields.get(name)
        if field is not None and field.default is not PydanticUndefined:
            return f"Change it, or leave it out for the default, {_shown(field.default)}."
    return "Change it."


def field_paths(model: type[BaseModel], prefix: str = "", within: tuple[type[BaseModel], ...] = ()) -> Iterator[str]:
    """Every field's dotted name, sections inside sections included."""
    for name, field in model.model_fields.items():
        yield prefix + name
        if get_origin(field.annotation) not in (None, Union, UnionType):
            continue  # items of a list or a mapping have no fixed name
        for section in _sections_in(field.annotation):
            if section not in (model, *within):
                yield from field_paths(section, f"{prefix}{name}.", (*within, model))


def _nearest(field: str, sections: list[type[BaseModel]], model: type[BaseModel]) -> str:
    """Suggests a similar field for an unknown one, or lists the fields of its section."""
    prefix, _, name = field.rpartition(".")
    if not prefix and (remedy := section_elsewhere(name)):
        return remedy
    here = [known for section in sections for known in section.model_fields]
    plain = name.lower().replace("-", "_")
    close = [f"{prefix}.{known}".removeprefix(".") for known in difflib.get_close_matches(plain, here, n=1)]
    paths: dict[str, list[str]] = {}
    for path in field_paths(model):
        paths.setdefault(path.rpartition(".")[2], []).append(path)
    if plain not in paths and (remedy := meaning(plain, set(field_paths(model)))):
        return remedy
    # The right name in the wrong section is more likely than a misspelt name in the right one.
    found = list(dict.fromkeys([*paths.get(plain, [])[:2], *close]))
    if not found:
        found = [path for known in difflib.get_close_matches(plain, paths, n=1, cutoff=0.75) for path in paths[known]]
    if found:
        return f"Did you mean {' or '.join(found)}?"
    whole = "gate" if model.__name__ == "Gate" else "recipe"
    return f"The fields of {prefix or f'the {whole}'} are {', '.join(here)}."


def _nearest_choice(value: Any, choices: list[str]) -> str:
    close = difflib.get_close_matches(str(value).lower(), choices, n=1)
    return f"Did you mean {close[0]}?" if close else "Write one of them."
