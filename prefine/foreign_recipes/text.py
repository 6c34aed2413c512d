"""A moved configuration as a commented recipe."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from prefine.foreign_recipes.settings import Moved, Written
from prefine.recipe.loading import yaml_value
from prefine.recipe.problems import field_paths
from prefine.recipe.registry import RECIPES

_COMMENT_COLUMN = 48
_VERBS = {"reward": "reward train"}


def recipe_text(moved: Moved, out: Path) -> str:
    """The recipe with each field's origin, what has no counterpart, and what is left to do.

    Args:
        moved: a configuration.
        out: the recipe's file, for the command in its first line.
    """
    configuration = moved.configuration
    verb = _VERBS.get(configuration.stage, configuration.stage)
    head = [
        f"prefine {verb} {out}",
        f"Moved from {configuration.trainer}: {configuration.source}. A comment says which setting a field is from.",
        "Fields that are not here have prefine's defaults: prefine recipe " + configuration.stage,
    ]
    lines = [*map(_comment, head), *_to_do(moved), *_fields(moved), *_without_counterpart(moved)]
    return "\n".join(lines) + "\n"


def _to_do(moved: Moved) -> Iterator[str]:
    if moved.to_do:
        yield _comment("To do before it runs:")
        yield from (_comment(f"- {sentence}") for sentence in moved.to_do)


def _fields(moved: Moved) -> Iterator[str]:
    """The fields in the order of the recipe's own, those of a section together."""
    order = list(field_paths(RECIPES[moved.configuration.stage]))
    sections: dict[str, dict[str, Written]] = {}
    for path in sorted(moved.fields, key=order.index):
        section, _, name = path.partition(".")
        sections.setdefault(section, {})[name] = moved.fields[path]
    for section in sections:
        for name, written in sections[section].items():
            if not name:
                yield _line(f"{section}: {yaml_value(written.value)}", written.origin)
            elif name == next(iter(sections[section])):
                yield f"{section}:"
            if name:
                yield _line(f"  {name}: {yaml_value(written.value)}", written.origin)


def _without_counterpart(moved: Moved) -> Iterator[str]:
    if moved.left:
        yield ""
        yield _comment("Without a counterpart here:")
        for left in moved.left:
            shown = f"{left.name}: {left.value}" if left.value else left.name
            yield _comment(f"- {shown}: {left.reason}.")


def _line(text: str, origin: str) -> str:
    return f"{text:<{_COMMENT_COLUMN}}{_comment(origin)}" if origin else text


def _comment(text: str) -> str:
    """Text as a comment of one line: a value of the configuration may hold line breaks."""
    shown = "".join(character if character.isprintable() else " " for character in text)
    return f"# {' '.join(shown.split())}"
