"""Columns that say whether a row is learned: flags of the whole row, and votes that no layout reads."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any

from prefine.data.reading.rows import RowError, printable
from prefine.data.records.answers import vote_label
from prefine.data.records.layouts.shape import LeftOut
from prefine.data.records.turns import FLAGS, OTHER_FLAGS, flag, is_blank

VOTE_COLUMNS = (
    *("vote", "kto_tag", "thumb", "thumbs", "feedback", "liked", "is_good", "thumbs_up"),
    *("thumb_up", "is_liked", "upvoted", "user_feedback", "human_feedback"),
)
"""Names of votes in datasets, besides `label`."""
_DOWN_COLUMNS = ("thumbs_down", "thumb_down", "is_bad", "disliked", "is_disliked", "downvoted")
_MEASURED = "loss"
_GAPS = re.compile(r"[\s_-]+")


def plain_name(column: str) -> str:
    """The name of a column in lower case, with `_` for spaces and hyphens."""
    return _GAPS.sub("_", column.strip()).lower()


def can_be_ignored(column: str) -> bool:
    """Whether a column that no layout reads may still decide over a row, so that a user may have to ignore it
    explicitly.
    """
    return _says_a_vote(column) is not None or column in (*FLAGS, *OTHER_FLAGS)


def ignored(column: str) -> str:
    """How a user ignores a column."""
    return f"data.columns: {{{printable(column)}: null}} ignores it"


def require_learned(value: Mapping[str, Any]) -> None:
    """Check the flags that say whether a row is learned.

    Numbers and texts in `loss` that are not a flag are taken as a measured loss.

    Raises:
        LeftOut: it is not to be learned.
        RowError: a weight that is neither 1 nor 0; a flag that prefine does not know.
    """
    for name in FLAGS:
        found = value.get(name)
        if is_blank(found):
            continue
        try:
            learned = flag(found, name)
        except RowError:
            if name == _MEASURED and isinstance(found, int | float | str):
                continue
            raise RowError(
                name, f"is not 1 or 0, and prefine gives all rows the same weight ({ignored(name)})"
            ) from None
        if not learned:
            raise LeftOut(name, f"is {str(found).lower()}, so the row is not to be learned")
    for name in OTHER_FLAGS:
        if not is_blank(value.get(name)):
            raise RowError(name, f"is a flag that prefine does not read; train: false is one ({ignored(name)})")


def require_no_vote_down(value: Mapping[str, Any], read: Collection[str]) -> None:
    """Raise RowError if a column that is not read marks the answer as bad: it would be imitated."""
    for name, up in unread_votes(value, read).items():
        if not up:
            shown = printable(name)
            raise RowError(name, f"is a vote: data.columns: {{label: {shown}}} reads it, {{{shown}: null}} ignores it")


def unread_votes(value: Mapping[str, Any], read: Collection[str]) -> dict[str, bool]:
    """Columns that hold a vote by name and value and are not in `read`, each with whether it is a thumb up."""
    votes: dict[str, bool] = {}
    for name, item in value.items():
        up = _says_a_vote(name)
        if up is None or item is None or name in read:
            continue
        try:
            votes[name] = vote_label(item) is up
        except RowError:
            continue
    return votes


@lru_cache(maxsize=1_000)
def _says_a_vote(column: str) -> bool | None:
    """Whether "yes" in a column of this name is a thumb up; None if it is not a vote."""
    plain = plain_name(column)
    return True if plain in ("label", *VOTE_COLUMNS) else False if plain in _DOWN_COLUMNS else None
