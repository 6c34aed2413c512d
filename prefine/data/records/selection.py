"""What is chosen from clean records: duplicates out, and a held-out part that shares no prompt with the rest.

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
# Soft hyphens, zero-width spaces and joiners, byte order marks: nobody sees them, so they make no other prompt.
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")


def _digest(parts: Iterable[str]) -> bytes:
    # Each part behind its length, so that no two lists of parts give the same bytes.
    joined = "".join(f"{len(part)}:{part}" for part in parts)
    return hashlib.blake2b(joined.encode("utf-8", "surrogatepass"), digest_size=_HASH_BYTES).digest()


# --- Groups of prompts -------------------------------------------------------------------------------------------


def normalised(text: str) -> str:
    """The text as far as a reader would call it the same: NFKC, case folded, white space single, ends bare."""
    folded = text
    for _ in range(2):  # casefold can undo NFKC and the other way round
        folded = unicodedata.normalize("NFKC", folded).casefold()
    folded = _SPACE.sub(" ", _INVISIBLE.sub("", folded)).strip()
    start, end = 0, len(folded)
    while start < end and _is_edge(folded[start]):
        start += 1
    while end > start and _is_edge(folded[end - 1]):
        end -= 1
    return folded[start:end] or folded


def _is_edge(character: str) -> bool:
    return character == " " or unicodedata.category(character)[0] == "P"


def prompt_group(prompt: Conversation | str) -> str:
    """Names the group of a prompt (32 hex digits): prompts that differ in case, spacing or end punctuation share it.

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
    """The prompt group of any record. A demonstration's prompt is all of it but the last answer.

    So the same prompts are held out of a file whether it is read as preferences or as demonstrations.
    """
    return prompt_group(record.messages[:-1] if isinstance(record, Demonstration) else record.prompt)


def is_heldout(group: str, seed: int, fraction: float) -> bool:
    """Whether a prompt group belongs to the held-out part.

    Depends on its arguments alone: not on order, on other rows, or on the machine. `fraction` is the share of
    groups, not of rows, that is held out on average. A larger fraction holds out the same groups and more.

    Raises:
        ValueError: the fraction is not in [0, 1).
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction {fraction} is not in [0, 1)")
    place = int.from_bytes(_digest((str(seed), group))[:8], "big")
    return place < fraction * 2**64


def sample_of(records: Iterable[tuple[R, Place]], kind: type[R], limit: int, seed: int) -> Iterator[tuple[R, Place]]:
    """`limit` records with their places drawn evenly from all, in their order; all of them where there are no more.

    Which are drawn depends on the seed and on what they say, not on their order. Memory is bounded by 200 bytes a drawn
    record: candidates wait in a temporary file.
    """
    # A heap: the highest lot first, as its negative; number; offset in the file; place.
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
    """Remembers records by hash, about 300 bytes a preference; counts what does not fit together.

    Attributes:
        duplicates: records seen before with the same content; `id` and `extra` are no content.
        duplicate_ids: records whose id was given before to another content. They are kept.
        contradictions: records that say the opposite of an earlier one: the same prompt with its answers swapped,
            or the same answer with the other vote. They are kept.
    """

    def __init__(self) -> None:
        self.duplicates = 0
        self.duplicate_ids = 0
        self.contradictions = 0
        self._contents: set[bytes] = set()
        self._verdicts: set[bytes] = set()
        self._ids: set[bytes] = set()

    def is_duplicate(self, record: Record) -> bool:
        """Whether the same content was seen before; remembers it if not."""
        verdict = _verdict(record)
        content = _digest((*verdict, *_shades(record)))
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


def _said(turns: Conversation, tools: tuple[dict[str, Any], ...]) -> list[str]:
    """Everything that turns and tool definitions say, as texts; whether a turn is supervised is not among it."""
    said = [_sorted_json(tools)] if tools else []
    for turn in turns:
        said += [turn.role, turn.content]
        given = [turn.reasoning, turn.name, turn.tool_call_id, *turn.tool_calls]
        if any(given):
            said.append(_sorted_json(given))
    return said


def _calls(turn: Message) -> str:
    """An assistant's tool calls without their ids, which differ where the same was called."""
    return _sorted_json([function_of(call) for call in turn.tool_calls])


def _sorted_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _verdict(record: Record) -> list[str]:
    """What a record says, as texts."""
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
    """What makes two records differ that say the same."""
    match record:
        case Preference():
            return (str(record.margin), str(record.score_difference), str(record.tie))
        case Demonstration():
            return tuple(map(str, (record.supervise_from, *record.learned_turns)))
    return ()


def _opposite(record: Record) -> list[str] | None:
    """What a record that contradicts this one would say."""
    match record:
        case Preference() if not record.tie:
            return ["preference", *_said(record.prompt, record.tools), record.rejected, record.chosen]
        case Vote():
            return ["vote", *_said(record.prompt, record.tools), record.completion, str(not record.label)]
    return None
