"""All layouts, by the kind of record that is read from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from prefine.data.records.layouts.arena import ARENA
from prefine.data.records.layouts.pairs import OTHER_ENDING, PAIRS
from prefine.data.records.layouts.ranked import ASKED, NUMBERED, RANKED
from prefine.data.records.layouts.scored import SCORED
from prefine.data.records.layouts.shape import Shape
from prefine.data.records.layouts.single import ALPACA, CHAT, COMPLETED_PROMPT, COMPLETIONS, PROMPTS, SHAREGPT
from prefine.data.records.layouts.trees import flat_tree, nested_tree
from prefine.data.records.layouts.votes import VOTES
from prefine.records import Completion, Demonstration, Preference, Prompt, Vote

_BATTLES = (*SCORED, *ARENA)

SHAPES: dict[type[BaseModel], tuple[Shape, ...]] = {
    Preference: (flat_tree(Preference), nested_tree(Preference), *_BATTLES, *PAIRS, RANKED),
    Vote: VOTES,
    # A row with a label or two answers is read by them first: a rejected answer is never imitated.
    Demonstration: (
        flat_tree(Demonstration),
        nested_tree(Demonstration),
        *VOTES,
        *_BATTLES,
        # A pair whose chosen answer ends `messages` is read as a chat: all of its assistant turns are learned.
        *(shape for shape in PAIRS if shape is not OTHER_ENDING),
        NUMBERED,
        CHAT,
        SHAREGPT,
        COMPLETED_PROMPT,
        ALPACA,
        RANKED,
        OTHER_ENDING,
    ),
    Completion: COMPLETIONS,
    Prompt: (flat_tree(Prompt), nested_tree(Prompt), *_BATTLES, *PAIRS, *PROMPTS, ASKED),
}
"""The shapes of each kind of record; the first that a row's values fit is used."""


def shape_of(value: Mapping[str, Any], kind: type[BaseModel]) -> Shape | None:
    """The shape of a row when it is read as `kind`: by its values, or if they fit none, by its columns alone.

    A row found by its columns has a null where a value is needed, and is refused for that reason.
    """
    shapes = SHAPES[kind]
    by_values = (shape for shape in shapes if shape.fits(value))
    by_names = (shape for shape in shapes if shape.fits_names(value))
    return next(by_values, None) or next(by_names, None)


def known_columns() -> frozenset[str]:
    """Every column that some layout reads."""
    return frozenset(name for shapes in SHAPES.values() for shape in shapes for name in shape.columns)
