"""Arena data of LMSYS: battles of two models with a human vote."""

from __future__ import annotations

from typing import Any

from prefine.data.reading.rows import RowError, kind_of
from prefine.data.records.answers import split_pair
from prefine.data.records.layouts.pairs import preference
from prefine.data.records.layouts.shape import RowView, Shape
from prefine.data.records.turns import said_text
from prefine.json_reading import JsonError, parse_json
from prefine.records import Preference

_WINNERS = {"model_a": 1, "model_b": 2, "tie": 0, "tie (bothbad)": 0, "both_bad": 0, "bothbad": 0}
_FLAGS = ("winner_tie", "winner_model_a", "winner_model_b")


def _battle(row: RowView) -> list[Preference]:
    """FastChat's: two conversations and a winner by name."""
    winner = row["winner"]
    if not isinstance(winner, str) or winner not in _WINNERS:
        found = repr(winner[:40]) if isinstance(winner, str) else kind_of(winner)
        raise RowError("winner", f"is {found}, not one of {', '.join(_WINNERS)}")
    return [_of_conversations(row, ("conversation_a", "conversation_b"), _WINNERS[winner], dict(row.value))]


def _flagged_battle(row: RowView) -> list[Preference]:
    """arena-55k's: the user's turns and each model's, as JSON lists in texts; and a flag for each outcome."""
    flags = [row[name] for name in _FLAGS]
    won = [index for index, value in enumerate(flags) if isinstance(value, bool | int | float) and value == 1]
    if len(won) != 1 or any(value not in (None, 0, 1) for value in flags):
        raise RowError(
            "winner_model_a", "with winner_model_b and winner_tie does not name one outcome (one is 1, the others 0)"
        )
    asked = _texts(row["prompt"], "prompt")
    fields = ("response_a", "response_b")
    talks = {}
    for field in fields:
        said = _texts(row[field], field)
        if len(said) != len(asked):
            raise RowError(field, f"has {len(said)} turns where prompt has {len(asked)}")
        pairs = zip(asked, said, strict=True)
        talks[field] = [
            {"role": role, "content": text} for pair in pairs for role, text in zip(_ROLES, pair, strict=True)
        ]
    return [_of_conversations(row, fields, won[0], talks)]


_ROLES = ("user", "assistant")


def _of_conversations(row: RowView, fields: tuple[str, str], winner: int, talks: dict[str, Any]) -> Preference:
    """`winner` is 1 or 2, or 0 for a tie. Battles of several turns share no prompt unless their first answers agree."""
    best, other = fields if winner != 2 else fields[::-1]
    return preference(row, split_pair(talks[best], talks[other], (best, other)), tie=winner == 0)


def _texts(value: Any, field: str) -> list[str]:
    """A list of texts, or the JSON of one."""
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except JsonError:
            raise RowError(field, "is text that is not the JSON of a list of texts") from None
    if not isinstance(value, list) or not value:
        raise RowError(field, "is not a list of texts")
    return [said_text(each, f"{field}[{index}]") for index, each in enumerate(value)]


ARENA = (
    Shape(
        "arena battle with flags",
        ("prompt", "response_a", "response_b", "winner_model_a", "winner_model_b"),
        _flagged_battle,
        may_have=frozenset({"winner_tie"}),
    ),
    Shape("arena battle", ("conversation_a", "conversation_b", "winner"), _battle),
)
