"""What a configuration says, and what becomes of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Values = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """One setting of another trainer.

    Attributes:
        name: as that trainer spells it.
        value: a JSON value; None if `expression` is given.
        expression: the source text of a value that only running the file would give.
        default: whether the configuration does not set it, and the trainer's default is meant.
    """

    name: str
    value: Any = None
    expression: str | None = None
    default: bool = False


@dataclass(frozen=True)
class Configuration:
    """A configuration as it was read.

    Attributes:
        trainer: TRL, LLaMA-Factory or axolotl.
        source: the file's name, for messages.
        stage: the stage of prefine that does what it does.
        settings: by name; each has its place in the recipe or a reason why it has none.
        unread: further parts of the file that cannot become settings, with the reason.
    """

    trainer: str
    source: str
    stage: str
    settings: dict[str, Setting]
    unread: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Written:
    """A field of the recipe: its value, where that is from, and the names of the settings."""

    value: Any
    origin: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Left:
    """A setting without a counterpart.

    Attributes:
        name, value: as in the configuration; the value as text.
        reason: a sentence.
    """

    name: str
    value: str
    reason: str


@dataclass
class Moved:
    """A configuration in prefine's terms.

    Attributes:
        fields: dotted names of the recipe's fields.
        left: what has no counterpart.
        to_do: what the user must fill in or decide before the recipe runs, as sentences.
    """

    configuration: Configuration
    fields: dict[str, Written] = field(default_factory=dict)
    left: list[Left] = field(default_factory=list)
    to_do: list[str] = field(default_factory=list)

    @property
    def values(self) -> Values:
        """The recipe's values, nested as in its file."""
        nested: Values = {}
        for path, written in self.fields.items():
            *sections, last = path.split(".")
            place = nested
            for name in sections:
                place = place.setdefault(name, {})
            place[last] = written.value
        return nested
