"""Selection from clean records: removes duplicates, and splits off a held-out part that shares no prompt with the rest.

Everything here streams: no record is kept, only 16-byte hashes.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import re
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from pydantic import BaseModel

from prefine.records import (
    Completion,
    Conversation,
    Demonstration,
    Message,
    Preference,
    Prompt,
    Record,
    Vote,
    function_of,
)

R = TypeVar("R", bound=BaseModel)
Place = tuple[str, int]
"""File and line of a row."""

_HASH_BYTES = 16
_SPACE = re.compile(r"\s+")
# Soft hyphens, zero-width spaces and joiners, byte order marks: invisible, so they do not make another prompt.
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")


def _digest(parts: Iterable[str]) -> bytes:
    # Each part after its length, so that no two lists of parts give the same bytes.
    joined = "".join(f"{len(part)}:{part}" for part in parts)
    return hashlib.blake2b(joined.encode("utf-8", "surrogatepass"), digest_size=_HASH_BYTES).digest()


# --- Groups of prompts -------------------------------------------------------------------------------------------


def normalised(text: str) -> str:
    """The text without differences that a reader would ignore: NFKC, case folded, single white space, no end
    punctuation.
    """
    if text.isascii():
        folded = text.lower()
    else:
        folded = text
        for _ in range(2):  # casefold can undo NFKC and vice versa
            folded = unicodedata.normalize("NFKC", folded).casefold()
        folded = _INVISIBLE.sub("", folded)
    folded = _SPACE.sub(" ", folded).strip()
    start, end = 0, len(folded)
    while start < end and _is_edge(folded[start]):
        start += 1
    while end > start and _is_edge(folded[end - 1]):
        end -= 1
    return folded[start:end] or folded


def _is_edge(character: str) -> bool:
    return character == " " or unicodedata.category(character)[0] == "P"


def prompt_group(prompt: Conversation | str) -> str:
    """The group of a prompt (32 hex digits): prompts that differ only in case, spacing or end punctuation share it.

    System turns, tool definitions and reasoning do not count: the same question under another instruction would still
    leak its answer. A text is taken as one user turn.
    """
    if isinstance(prompt, str):
        return _digest(("user", normalised(prompt))).hex()
    said: list[str] = []
    for turn in prompt:
        if turn.role != "system":
            said += [turn.role, normalised(turn.content)]
            if turn.tool_calls:
                said += ["tool_calls", _calls(turn)]
    return _digest(said).hex()


def group_of(record: Record) -> str:
    """The prompt group of any record. A demonstration's prompt is everything before the last answer. So a file has the
    same held-out prompts whether it is read as preferences or as demonstrations.
    """
    return prompt_group(record.messages[:-1] if isinstance(record, Demonstration) else record.prompt)


def is_heldout(group: str, seed: int, fraction: float) -> bool:
    """Whether a prompt group belongs to the held-out part.

    Depends on its arguments alone: not on order, on other rows, or on the machine. `fraction` is the share of
    groups, not of rows, that is held out on average. A larger fraction holds out the same groups and further ones.

    Raises:
        ValueError: the fraction is not in [0, 1).
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction {fraction} is not in [0, 1)")
    place = int.from_bytes(_digest((str(seed), group))[:8], "big")
    return place < fraction * 2**64


def sample_of(records: Iterable[tuple[R, Place]], kind: type[R], limit: int, seed: int) -> Iterator[tuple[R, Place]]:
    """A uniform sample of `limit` records with their places, in order; all records if there are no more.

    The sample depends on the seed and the content, not on the order. It needs about 200 bytes of memory for each
    sampled record; candidates are kept in a temporary file.
    """
    # A heap, the highest lot first: negative lot, number, offset in the file, place.
    drawn: list[tuple[int, int, int, Place]] = []
    with tempfile.TemporaryFile() as candidates:
        for number, (record, place) in enumerate(records):
            text = record.model_dump_json()
            lot = int.from_bytes(_digest((str(seed), text))[:8], "big")
            if len(drawn) == limit and -lot <= drawn[0][0]:
                continue
            entry = (-lot, number, candidates.tell(), place)
            candidates.write(text.encode("utf-8", "surrogatepass") + b"\n")
            (heapq.heappush if len(drawn) < limit else heapq.heapreplace)(drawn, entry)
        for _, _, offset, place in sorted(drawn, key=lambda entry: entry[1]):
            candidates.seek(offset)
            yield kind.model_validate_json(candidates.readline()), place


# --- Duplicates and contradictions -------------------------------------------------------------------------------


class DuplicateFilter:
    """Remembers records by hash, about 300 bytes for a preference; counts duplicates and contradictions.

    Attributes:
        duplicates: records seen before with the same content, apart from `id` and `extra`.
        duplicate_ids: records with an id seen before with other content. They are kept.
        contradictions: records that contradict an earlier one: the same prompt with its answers swapped, or the same
            answer with the other vote. They are kept.
    """

    def __init__(self) -> None:
        self.duplicates = 0
        self.duplicate_ids = 0
        self.contradictions = 0
        self._contents: set[bytes] = set()
        self._verdicts: set[bytes] = set()
        self._ids: set[bytes] = set()

    def is_duplicate(self, record: Record) -> bool:
        """Whether the same content was seen before; if not, it is remembered."""
        verdict = _verdict(record)
        content = content_key(record)
        if content in self._contents:
            self.duplicates += 1
            return True
        self._contents.add(content)
        if record.id is not None:
            name = _digest((record.id,))
            self.duplicate_ids += name in self._ids
            self._ids.add(name)
        opposite = _opposite(record)
        if opposite is not None:
            self.contradictions += _digest(opposite) in self._verdicts
            self._verdicts.add(_digest(verdict))
        return False


def content_key(record: Record) -> bytes:
    """Hash of the content that makes two records duplicates: all of it apart from `id` and `extra`."""
    return _digest((*_verdict(record), *_shades(record)))


def judged_item(record: Record) -> tuple[bytes, int]:
    """Hash of what a record judges, and its judgement: 1 or -1, which contradict each other; 0 for neither.

    Two pairs of the same answers judge the same item, whichever is preferred; so do two votes on one answer. Records of
    other kinds judge nothing: their item is their content.
    """
    if isinstance(record, Preference):
        first, second = sorted((record.chosen, record.rejected))
        item = ["preference", *_said(record.prompt, record.tools), first, second]
        return _digest(item), 0 if record.tie else 1 if record.chosen == first else -1
    if isinstance(record, Vote):
        item = ["vote", *_said(record.prompt, record.tools), record.completion]
        return _digest(item), 1 if record.label else -1
    return content_key(record), 0


def _said(turns: Conversation, tools: tuple[dict[str, Any], ...]) -> list[str]:
    """All content of turns and tool definitions as texts, without whether a turn is supervised."""
    said = [_sorted_json(tools)] if tools else []
    for turn in turns:
        said += [turn.role, turn.content]
        given = [turn.reasoning, turn.name, turn.tool_call_id, *turn.tool_calls]
        if any(given):
            said.append(_sorted_json(given))
    return said


def _calls(turn: Message) -> str:
    """An assistant's tool calls without their ids, which differ between equal calls."""
    return _sorted_json([function_of(call) for call in turn.tool_calls])


def _sorted_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _verdict(record: Record) -> list[str]:
    """The content of a record, as texts."""
    match record:
        case Preference():
            return ["preference", *_said(record.prompt, record.tools), record.chosen, record.rejected]
        case Vote():
            return ["vote", *_said(record.prompt, record.tools), record.completion, str(record.label)]
        case Completion():
            return ["completion", *_said(record.prompt, record.tools), record.completion]
        case Demonstration():
            return ["demonstration", *_said(record.messages, record.tools)]
        case Prompt():
            return ["prompt", *_said(record.prompt, record.tools)]


def _shades(record: Record) -> tuple[str, ...]:
    """What distinguishes two records with the same content."""
    match record:
        case Preference():
            return (str(record.margin), str(record.score_difference), str(record.tie))
        case Demonstration():
            return tuple(map(str, (record.supervise_from, *record.learned_turns)))
    return ()


def _opposite(record: Record) -> list[str] | None:
    """The content of a record that would contradict this one."""
    match record:
        case Preference() if not record.tie:
            return ["preference", *_said(record.prompt, record.tools), record.rejected, record.chosen]
        case Vote():
            return ["vote", *_said(record.prompt, record.tools), record.completion, str(not record.label)]
    return None
