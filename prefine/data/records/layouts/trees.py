"""Conversation trees, as OpenAssistant has them: one message a row with its parent's id, or a tree a row.

Each prompter's message is a prompt, after the turns that lead to it. Its replies are the answers. Of ranked replies the
best is a demonstration, and they give pairs as other ranked answers do; of replies without ranks each is a
demonstration. Only the reply is learned, earlier messages are context: so none is learned twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from prefine.data.reading.rows import Problem, RowError, kind_of
from prefine.data.records.answers import finite
from prefine.data.records.layouts.ranked import RankedAnswer, pairs_of
from prefine.data.records.layouts.shape import COMMON_COLUMNS, LeftOut, RowView, Shape, extra_of
from prefine.data.records.row_flags import require_learned
from prefine.data.records.turns import MEDIA, is_blank, said_text
from prefine.records import Demonstration, Message, Preference, Prompt, Record
from prefine.row_rules import PairRule

_ROLES = {"prompter": "user", "assistant": "assistant"}
MOST_MESSAGES = 10_000
"""Most messages of one tree with a row for each: they are held in memory together."""
FLAT = "message of a conversation tree"
FLAT_COLUMNS = frozenset(
    {"message_id", "parent_id", "message_tree_id", "text", "role", "rank", "deleted", "review_result"}
)


@dataclass
class Node:
    """A message of a tree.

    Attributes:
        value: its columns.
        turns: the turns up to and with this message, once it is understood.
        unlearned: why it is only context, if its flags (train, loss, weight) say so.
        problem: why it cannot be used.
        left_out: why it gives no record.
        records: of the message; those of a prompt and its replies belong to the reply that is learned or chosen.
    """

    value: Mapping[str, Any]
    parent: Node | None = None
    replies: list[Node] = field(default_factory=list)
    turns: tuple[Message, ...] = ()
    unlearned: Problem | None = None
    problem: Problem | None = None
    left_out: Problem | None = None
    used: bool = False
    records: list[Record] = field(default_factory=list)

    @property
    def usable(self) -> bool:
        """Whether it is understood and not left out."""
        return self.problem is None and self.left_out is None


def is_flat_message(value: Mapping[str, Any]) -> bool:
    """Whether a row is one message of a tree."""
    return (
        value.get("message_id") is not None
        and "parent_id" in value
        and value.get("text") is not None
        and isinstance(value.get("role"), str)
        and value["role"] in _ROLES
    )


def tree_id(value: Mapping[str, Any]) -> Any:
    """The id that the messages of one tree share."""
    return value.get("message_tree_id")


def read_flat(values: Sequence[Mapping[str, Any]], kind: type[BaseModel], rule: PairRule) -> list[Node]:
    """The messages of one tree, in the order of their rows, with the records that they give."""
    nodes = [Node(value) for value in values]
    by_id: dict[Any, Node] = {}
    for node in nodes:
        name = node.value["message_id"]
        if not isinstance(name, str | int) or name in by_id:
            node.problem = Problem("message_id", "is not text or a number, or names two messages of its tree")
        else:
            by_id[name] = node
    for node in nodes:
        parent_id = node.value["parent_id"]
        if parent_id is None:
            continue
        parent = by_id.get(parent_id) if isinstance(parent_id, str | int) else None
        if parent is None or parent is node:
            node.problem = Problem(
                "parent_id", "names no message among the rows of its tree (message_tree_id) that stand together"
            )
        else:
            node.parent = parent
            parent.replies.append(node)
    for root in [node for node in nodes if node.parent is None]:
        _understand(root)
    for node in nodes:
        if node.usable and not node.turns:
            node.problem = Problem("parent_id", "leads in a circle")
    _make_records(nodes, kind, rule)
    for node in nodes:
        extra = extra_of(node.value, FLAT_COLUMNS)
        node.records = [record.model_copy(update={"extra": extra}) for record in node.records]
    return nodes


def _understand(root: Node) -> None:
    """Find the turns of a message and of all messages below it."""
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if node.problem is None:
            try:
                node.turns = _turns(node)
            except LeftOut as error:
                node.left_out = error.problem
            except RowError as error:
                node.problem = error.problem
        waiting += node.replies


# Columns of other layouts that do not occur beside a message of a tree.
_REFUSED = (*sorted(COMMON_COLUMNS - {"id", "extra"}), "tool_calls", "reasoning", "reasoning_content", "thinking")


def _require_plain(value: Mapping[str, Any], names: Sequence[str]) -> None:
    for name in names:
        if not is_blank(value.get(name)):
            raise RowError(name, "is not empty, and of a conversation tree prefine reads the messages' texts only")


def _turns(node: Node) -> tuple[Message, ...]:
    value, parent = node.value, node.parent
    _require_plain(value, (*MEDIA, *_REFUSED))
    try:
        require_learned(value)
    except LeftOut as error:
        node.unlearned = error.problem
    role = _ROLES.get(value["role"]) if isinstance(value.get("role"), str) else None
    if role is None:
        raise RowError("role", f"is {str(value.get('role'))[:40]!r}, not one of {', '.join(_ROLES)}")
    if value.get("deleted") is True:
        raise LeftOut("deleted", "is true")
    if value.get("review_result") is False:
        raise LeftOut("review_result", "is false: people refused the message")
    if parent is None:
        before: tuple[Message, ...] = ()
    elif parent.turns:
        before = parent.turns
    else:
        raise LeftOut("parent_id", "names a message that cannot be used")
    due = "assistant" if before and before[-1].role == "user" else "user"
    if role != due:
        raise RowError("role", f"is {value['role']!r}, which does not answer the message before it")
    return (*before, Message(role="user" if role == "user" else "assistant", content=said_text(value["text"], "text")))


def _make_records(nodes: Sequence[Node], kind: type[BaseModel], rule: PairRule) -> None:
    """Add each record to its message, and a reason to messages that give none."""
    for node in nodes:
        if not node.usable or node.turns[-1].role != "user":
            continue
        replies = [reply for reply in node.replies if reply.usable]
        taught = [reply for reply in replies if reply.unlearned is None]
        try:
            if kind is Prompt:
                node.records.append(Prompt(prompt=node.turns, id=_id(node)))
                node.used = True
            elif kind is Demonstration:
                _demonstrate(node, replies)
            else:
                _compare(node, taught, rule)
        except RowError as error:
            node.problem = error.problem
    for node in nodes:
        if node.records:
            step: Node | None = node
            while step is not None and not step.used:
                step.used = True
                step = step.parent
    for node in nodes:
        if node.usable and not node.used:
            node.left_out = _unused(node, kind)


def _unused(node: Node, kind: type[BaseModel]) -> Problem:
    if kind is Prompt:
        return Problem("role", "is assistant: an answer, and prompts are read")
    if node.turns[-1].role == "user":
        return Problem("replies", "are missing, or none of them can be used" if not node.replies else "give no record")
    if node.unlearned is not None:
        return node.unlearned
    if kind is Demonstration:
        return Problem("rank", "is not the best among the replies")
    return Problem("rank", "is missing or the same in all replies, so no pair can be made")


def _id(node: Node) -> str | None:
    name = node.value.get("message_id")
    return None if name is None else str(name)


def _place(node: Node) -> float | None:
    rank = node.value.get("rank")
    return None if rank is None else finite(rank, "rank")


def _demonstrate(prompt: Node, replies: Sequence[Node]) -> None:
    ranked = [(place, reply) for reply in replies if (place := _place(reply)) is not None]
    best = [min(ranked, key=lambda each: each[0])[1]] if ranked else replies
    for reply in [each for each in best if each.unlearned is None]:
        reply.records.append(Demonstration(messages=reply.turns, supervise_from=len(prompt.turns), id=_id(reply)))


def _compare(prompt: Node, replies: Sequence[Node], rule: PairRule) -> None:
    by_text: dict[str, Node] = {}
    answers = []
    for reply in replies:
        place = _place(reply)
        if place is not None:
            text = reply.turns[-1].content
            by_text.setdefault(text, reply)
            answers.append(RankedAnswer(text, place))
    if not answers:
        return
    pairs = pairs_of(answers, rule, "replies")
    for number, (better, worse) in enumerate(pairs, start=1):
        by_text[worse.text].used = True
        name = _id(prompt) if len(pairs) == 1 or _id(prompt) is None else f"{_id(prompt)}/{number}"
        by_text[better.text].records.append(
            Preference(prompt=prompt.turns, chosen=better.text, rejected=worse.text, id=name)
        )


# --- A tree a row ------------------------------------------------------------------------------------------------


def _nested(kind: type[BaseModel]) -> Any:
    def build(row: RowView) -> list[Record]:
        _require_plain(row.value, _REFUSED)
        nodes = list(_nodes(row["prompt"], None, "prompt"))
        _understand(nodes[0])
        _make_records(nodes, kind, row.pairs)
        wrong = next((node.problem for node in nodes if node.problem is not None), None)
        if wrong is not None:
            raise RowError(f"prompt…{wrong.field}", wrong.reason)
        records = [record for node in nodes for record in node.records]
        if not records:
            raise LeftOut("prompt", "is a tree that gives no record: nothing in it is answered, or ranked")
        common = row.common
        return [r.model_copy(update={"extra": common["extra"], "id": r.id or common["id"]}) for r in records]

    return build


def _nodes(value: Any, parent: Node | None, at: str) -> Iterator[Node]:
    """A message and all messages below it, each before its replies."""
    if not isinstance(value, dict):
        raise RowError(at, f"is {kind_of(value)}, not a message")
    node = Node(value, parent)
    if parent is not None:
        parent.replies.append(node)
    yield node
    replies = value.get("replies") or []
    if not isinstance(replies, list):
        raise RowError(f"{at}.replies", f"is {kind_of(replies)}, not a list of messages")
    for index, reply in enumerate(replies):
        yield from _nodes(reply, node, f"{at}.replies[{index}]")


def _flat(kind: type[BaseModel]) -> Any:
    def build(row: RowView) -> list[Record]:
        (node,) = read_flat([row.value], kind, row.pairs)
        problem = node.problem or node.left_out
        if problem is not None:
            raise (LeftOut if node.problem is None else RowError)(problem.field, problem.reason)
        return node.records

    return build


class _FlatShape(Shape):
    def taken(self, value: Mapping[str, Any]) -> frozenset[str]:
        """Without the rank of a question, which is not read: pandas writes NaN there."""
        return super().taken(value) - ({"rank"} if value.get("role") == "prompter" else set())


def flat_tree(kind: type[BaseModel]) -> Shape:
    """A tree of which each message is a row; RecordStream reads the rows of a tree together, by `read_flat`."""
    return _FlatShape(FLAT, ("message_id", "text", "role"), _flat(kind), may_have=FLAT_COLUMNS, when=is_flat_message)


def _is_tree(value: Mapping[str, Any]) -> bool:
    return isinstance(value.get("prompt"), dict) and "replies" in value["prompt"]


def nested_tree(kind: type[BaseModel]) -> Shape:
    """A tree in one row: `prompt` is its first message, with `text`, `role` and `replies`."""
    return Shape("conversation tree", ("prompt",), _nested(kind), when=_is_tree)
