"""A row -> its records of the wanted kind, by one of the layouts in prefine.data.records.layouts.

The values of a row choose its layout and are then checked strictly. A file may hold several layouts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar, cast

from pydantic import ValidationError

from prefine.data.reading.rows import MAX_TEXT_CHARACTERS, MAX_TURNS, RowError, Unwritable
from prefine.data.records.layouts.shape import COMMON_COLUMNS, LeftOut, RowView, Shape, extra_of
from prefine.data.records.layouts.table import shape_of
from prefine.data.records.row_flags import ignored, require_learned, require_no_vote_down
from prefine.data.records.tool_calls import tools_of
from prefine.data.records.turns import MEDIA, is_blank, row_error
from prefine.records import Completion, Conversation, Demonstration, Message, Preference, Prompt, Record, Vote
from prefine.row_rules import AS_WRITTEN, RowRules

R = TypeVar("R", bound=Prompt | Demonstration)


def records_of(
    value: Mapping[str, Any], kind: type[R], rules: RowRules = AS_WRITTEN, shape: Shape | None = None
) -> list[R]:
    """The records in a row, at least one.

    A row may hold more than the wanted kind: a preference is also a demonstration (its chosen answer) and a prompt.

    Args:
        value: the row as plain JSON, with renamed columns.
        kind: of the records.
        rules: which pairs ranked answers give.
        shape: of the row, if known.

    Raises:
        LeftOut: the row is valid but has no record of this kind, such as a tie when answers are imitated.
        RowError: the row has no shape of this kind, or an invalid value; names the field.
    """
    shape = shape or shape_of(value, kind)
    if shape is None:
        raise RowError("columns", "fit no known format")
    _refuse_media(value)
    if rules.learned and kind in (Preference, Vote, Demonstration):
        require_learned(value)
    if kind is Demonstration:
        require_no_vote_down(value, shape.taken(value))
    # Of a prompt all other columns are kept, answers included: rewards may use them.
    taken = frozenset({"prompt"}) if kind is Prompt else shape.taken(value)
    common = {"id": _row_id(value), "extra": extra_of(value, taken), "tools": tools_of(value)}
    # Other kinds take one record of a row; the rule for pairs applies to preferences only.
    view = RowView(value, common, rules.pairs if kind is Preference else "best_worst")
    try:
        records = [_as_kind(record, kind) for record in shape.build(view)]
    except ValidationError as error:
        first = row_error(error).problem
        raise RowError(first.field or shape.turns_column, first.reason) from None
    for record in records:
        require_bounded(record)
    return _with_ids(records)


def without_unwritable(value: dict[str, Any], shape: Shape) -> tuple[dict[str, Any], list[str]]:
    """A row without the columns that JSON cannot represent, and their names.

    Raises:
        RowError: the shape reads one of them, other than an id, which is left out.
    """
    names = [name for name, item in value.items() if isinstance(item, Unwritable)]
    read = shape.taken(value) | COMMON_COLUMNS.union(MEDIA) - {"id"}
    for name in names:
        if name in read:
            raise RowError(name, value[name].reason)
    return {name: item for name, item in value.items() if not isinstance(item, Unwritable)}, names


def _refuse_media(value: Mapping[str, Any]) -> None:
    for name in MEDIA:
        if not is_blank(value.get(name)):
            raise RowError(name, f"is not empty, and prefine reads text only ({ignored(name)})")


def require_bounded(record: Record) -> None:
    """Raise RowError if a record's texts are too long for bounded memory, or it has too many turns."""
    match record:
        case Preference():
            said = [*_texts(record.prompt), record.chosen, record.rejected]
        case Vote() | Completion():
            said = [*_texts(record.prompt), record.completion]
        case Demonstration():
            said = _texts(record.messages)
            if len(record.messages) > MAX_TURNS:
                raise RowError(
                    "messages", f"are {len(record.messages):,} turns; prefine learns from at most {MAX_TURNS:,}"
                )
        case Prompt():
            said = _texts(record.prompt)
    if sum(map(len, said)) > MAX_TEXT_CHARACTERS:
        raise RowError("line", f"holds more than {MAX_TEXT_CHARACTERS:,} characters of prompt and answers")


def _texts(turns: Conversation) -> list[str]:
    return [text for turn in turns for text in (turn.content, turn.reasoning or "", str(turn.tool_calls or ""))]


def _row_id(value: Mapping[str, Any]) -> str | None:
    """A row's id as text. It is only for readers, so no type of id is refused."""
    found = value.get("id")
    if isinstance(found, float) and found.is_integer():
        found = int(found)  # pandas turns 7 into 7.0 if another row has no id
    return found if found is None or isinstance(found, str) else json.dumps(found, ensure_ascii=False)


def _with_ids(records: list[R]) -> list[R]:
    """Several records of one row with separate ids: `ID/1`, `ID/2`."""
    if len(records) < 2 or len({record.id for record in records}) == len(records) or records[0].id is None:
        return records
    numbered = enumerate(records, start=1)
    return [cast(R, record.model_copy(update={"id": f"{record.id}/{number}"})) for number, record in numbered]


def _as_kind(record: Record, kind: type[R]) -> R:
    if type(record) is kind:
        return record
    if kind is Prompt and isinstance(record, Prompt):
        return cast(R, Prompt(prompt=record.prompt, id=record.id, extra=record.extra, tools=record.tools))
    if isinstance(record, Preference):
        if record.tie:
            raise LeftOut("preferred", "is a tie, so it has no answer to imitate")
        return cast(R, _demonstration(record, record.chosen))
    if isinstance(record, Vote):
        if not record.label:
            raise LeftOut("label", "is down, so the answer is not to be imitated")
        return cast(R, _demonstration(record, record.completion))
    raise TypeError(f"{type(record).__name__} cannot be read as {kind.__name__}")


def _demonstration(record: Prompt, answer: str) -> Demonstration:
    messages = (*record.prompt, Message(role="assistant", content=answer))
    return Demonstration(
        messages=messages, supervise_from=len(record.prompt), tools=record.tools, id=record.id, extra=record.extra
    )
