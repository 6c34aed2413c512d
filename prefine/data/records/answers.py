"""Two answers and their common prompt, from the different forms in files."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from prefine.data.reading.rows import RowError, kind_of
from prefine.data.records.turns import (
    chat_turns,
    is_blocks,
    is_transcript,
    is_turn,
    lone_turn,
    merge_repeats,
    prompt_turns,
    said_text,
    transcript_turns,
)
from prefine.records import Message

Pair = tuple[list[Message], str, str]
"""A prompt, the chosen and the rejected answer."""

_SCORE_COLUMNS = (("chosen_score", "rejected_score"), ("score_chosen", "score_rejected"))


def split_pair(chosen: Any, rejected: Any, fields: tuple[str, str] = ("chosen", "rejected")) -> Pair:
    """Prompt, chosen and rejected answer of two whole conversations that differ in the last turn only.

    Args:
        chosen, rejected: chat lists or HH transcripts.
        fields: their columns.

    Raises:
        RowError: not conversations, different prompts, or a last turn that is not the assistant's.
    """
    first, second = _conversation(chosen, fields[0]), _conversation(rejected, fields[1])
    if first[:-1] != second[:-1]:
        raise RowError(fields[1], f"does not share its turns before the answer with {fields[0]}")
    if len(first) == 1:
        raise RowError(fields[0], "has one turn only, so the prompt is missing")
    prompt = first[:-1]
    return (
        (merge_repeats(prompt) if is_transcript(chosen) else prompt),
        plain_answer(first[-1], fields[0]),
        plain_answer(second[-1], fields[1]),
    )


def _conversation(value: Any, field: str) -> list[Message]:
    if isinstance(value, str):
        if not is_transcript(value):
            raise RowError(field, "is plain text without a prompt, not a chat list or an HH transcript")
        return transcript_turns(value, field)
    return chat_turns(value, field)


def plain_answer(turn: Message, field: str, *, learned: bool = True) -> str:
    """The text of a last turn that is compared, voted on or scored.

    Args:
        turn: the turn.
        field: its column.
        learned: whether it is learned from, so that a flag against that applies.

    Raises:
        RowError: it is not the assistant's, or has more than a text: only demonstrations hold that.
    """
    if turn.role != "assistant":
        raise RowError(field, f"ends with a turn of {turn.role}, not of assistant")
    if turn.tool_calls:
        raise RowError(field, "ends with tool calls, which prefine learns from demonstrations only")
    if turn.reasoning:
        raise RowError(field, "ends with reasoning beside the answer, which prefine learns from demonstrations only")
    if learned and not turn.supervised:
        raise RowError(field, "ends with an answer that is marked as not to be learned (train, loss or weight)")
    return turn.content


def prompted_pair(
    prompt: Any, chosen: Any, rejected: Any, fields: tuple[str, str, str] = ("prompt", "chosen", "rejected")
) -> Pair:
    """Prompt and answers of a row with a column for the prompt.

    The answers are texts, single turns, chat lists with only the answer, or whole conversations that start with the
    prompt (UltraFeedback; there the prompt may be only the first question).

    Raises:
        RowError: an answer of another form, or one that does not start with the prompt.
    """
    opening = prompt_turns(prompt, fields[0])
    if is_whole(chosen) or is_whole(rejected):
        turns, first, second = split_pair(chosen, rejected, fields[1:])
        if not _begins_with(turns, opening, only_a_question=not isinstance(prompt, list)):
            raise RowError(fields[1], f"does not begin with the {fields[0]}")
        return turns, first, second
    in_transcript = is_transcript(prompt)
    return (
        opening,
        lone_answer(chosen, fields[1], in_transcript),
        lone_answer(rejected, fields[2], in_transcript),
    )


def is_whole(value: Any) -> bool:
    """Whether an answer is a whole conversation: an HH transcript, or a chat list of several turns."""
    return is_transcript(value) or (isinstance(value, list) and len(value) > 1 and not is_blocks(value))


def _begins_with(turns: list[Message], opening: list[Message], *, only_a_question: bool) -> bool:
    if turns == opening:
        return True
    if not only_a_question:
        return False
    unprompted = turns[1:] if turns and turns[0].role == "system" else turns
    stripped = [(turn.role, turn.content.strip()) for turn in unprompted[: len(opening)]]
    return stripped == [(turn.role, turn.content.strip()) for turn in opening]


def lone_answer(value: Any, field: str, in_transcript: bool = False) -> str:
    """One answer: a text, text blocks, one assistant turn, or a chat list that holds one.

    After a transcript's "\\n\\nAssistant:" white space around the answer belongs to the format.

    Raises:
        RowError: anything else.
    """
    if isinstance(value, dict) and is_turn(value):
        return plain_answer(lone_turn(value, field), field)
    if isinstance(value, list) and not is_blocks(value):
        turns = chat_turns(value, field)
        if len(turns) != 1:
            raise RowError(field, f"has {len(turns)} turns where one answer is expected")
        return plain_answer(turns[0], field)
    said = said_text(value, field)
    return said.strip() if in_transcript else said


def preferred_answer(value: Any) -> int:
    """1 or 2 for the preferred answer, 0 for a tie (0 or null).

    Raises:
        RowError: anything else, true and false included.
    """
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int | float) or value not in (0, 1, 2):
        found = value if isinstance(value, int | float) else kind_of(value)
        raise RowError("preferred", f"is {str(found)[:40]}, not 1, 2 or 0 (a tie)")
    return int(value)


def margin_of(value: Mapping[str, Any]) -> float | None:
    """How much better the chosen answer is by the row's `margin`; None without one.

    Raises:
        RowError: not a finite number, or negative.
    """
    return _not_negative(value, "margin")


def _not_negative(value: Mapping[str, Any], field: str) -> float | None:
    found = value.get(field)
    if found is None:
        return None
    number = finite(found, field)
    if number < 0:
        raise RowError(field, "is negative: it says that the rejected answer is better")
    return number


def score_difference(value: Mapping[str, Any]) -> float | None:
    """The chosen answer's score minus the rejected one's; None without scores.

    Raises:
        RowError: a score that is not finite, only one score, or a rejected answer with the higher score.
    """
    for first, second in _SCORE_COLUMNS:
        high, low = value.get(first), value.get(second)
        if high is None and low is None:
            continue
        if high is None or low is None:
            raise RowError(first if high is None else second, "is missing beside the other score")
        difference = finite(high, first) - finite(low, second)
        if difference < 0:
            raise RowError(first, f"is less than {second}: the scores contradict the choice")
        if not math.isfinite(difference):
            raise RowError(first, f"is too far from {second}")
        return difference
    return _not_negative(value, "score_difference")  # of a record written by prefine


def finite(value: Any, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RowError(field, f"is {kind_of(value)}, not a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise RowError(field, "is not a finite number")
    return number


# Words for a vote, in lower case, without spaces, hyphens and underscores; and the two emoji.
_VOTES = {
    **dict.fromkeys(
        ("up", "thumbsup", "yes", "y", "good", "positive", "liked", "like", "true", "1", "1.0", "👍"), True
    ),
    **dict.fromkeys(
        ("down", "thumbsdown", "no", "n", "bad", "negative", "disliked", "dislike", "false", "0", "0.0", "👎"), False
    ),
}
# Skin tones and variation selectors do not change the vote; emoji names are between colons.
_NOT_OF_A_VOTE = re.compile("(?<=[A-Za-z])-(?=[A-Za-z])|[\\s_:\U0001f3fb-\U0001f3ff\ufe0e\ufe0f]+")


def vote_label(value: Any) -> bool:
    """A vote: true or false, 1 or 0, or a word or emoji for them in any case (up, yes, good, liked, thumbs_up, 👍).

    Raises:
        RowError: anything else.
    """
    if isinstance(value, bool | int | float) and value in (0, 1):
        return value == 1
    if isinstance(value, str):
        vote = _VOTES.get(_NOT_OF_A_VOTE.sub("", value[:80]).lower())
        if vote is not None:
            return vote
    found = value if isinstance(value, int | float) else repr(value[:40]) if isinstance(value, str) else kind_of(value)
    raise RowError("label", f"is {str(found)[:60]}, not true or false, 1 or 0, up or down, yes or no, 👍 or 👎")
