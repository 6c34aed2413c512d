"""Settings of a recipe that have no effect, given its other settings. They are refused: nothing is ignored silently."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pydantic import BaseModel


class Unread(NamedTuple):
    """Settings that have no effect under a condition.

    Attributes:
        applies: whether the condition holds.
        fields: dotted names.
        rule: the condition in words.
        remedy: what to set, after "set", for them to have an effect.
    """

    applies: bool
    fields: tuple[str, ...]
    rule: str
    remedy: str


class SeveralRulesError(ValueError):
    """Raised by a validator for several broken rules at once; each becomes an error of its own."""

    def __init__(self, rules: Sequence[str]) -> None:
        super().__init__("; ".join(rules))
        self.rules = tuple(rules)


def without_effect(recipe: BaseModel, rules: Iterable[Unread]) -> list[str]:
    """One clause for each setting without effect: field, value, rule and remedy.

    A setting with its default value is not reported: a run's own recipe.yaml has all defaults.
    """
    return [
        f"{name} {json.dumps(value)} has no effect, as {each.rule}: leave it out, or set {each.remedy}"
        for each in rules
        if each.applies
        for name in each.fields
        for value, default in [_value_and_default(recipe, name)]
        if value != default
    ]


def _value_and_default(recipe: BaseModel, name: str) -> tuple[object, object]:
    *path, last = name.split(".")
    section = recipe
    for part in path:
        section = getattr(section, part)
    return getattr(section, last), type(section).model_fields[last].default
