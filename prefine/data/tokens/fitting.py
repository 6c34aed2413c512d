"""Cuts rows that exceed the length limit, so that the rest is a regular conversation.

Whole exchanges are dropped, the oldest first: a user turn with everything up to the next one. The rest is rendered
again, with the beginning-of-sequence token, the system turn, tool definitions and all role headers. If the last
exchange alone is too long, its user turn is shortened at its start, as the question is mostly at the end. Answers are
never cut.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from prefine.data.tokens.store import FitCounts
from prefine.data.tokens.template import ChatTemplate, Tools
from prefine.data.tokens.trees import TokenTree
from prefine.records import Completion, Conversation, Demonstration, Message, Preference, Prompt, Record, Vote


@dataclass(frozen=True)
class Fitted:
    """A row's tokens, and how it was cut.

    Attributes:
        tree: of the rest.
        turns_dropped: number of dropped turns.
        text_cut: whether a user turn was shortened.
        turns_not_learned: turns in it that should be learned but cannot be; see ChatTemplate.learned.
    """

    tree: TokenTree
    turns_dropped: int = 0
    text_cut: bool = False
    turns_not_learned: int = 0

    @property
    def cut(self) -> bool:
        """Whether anything is missing."""
        return self.turns_dropped > 0 or self.text_cut

    @property
    def what_is_cut(self) -> str:
        """What is missing, in words; the same for rows that were cut alike, "" if nothing is."""
        dropped = [f"{self.turns_dropped} turns"] if self.turns_dropped else []
        return ", ".join([*dropped, *([f"text beyond {self.length} tokens"] if self.text_cut else [])])

    @property
    def length(self) -> int:
        """Tokens of the prompt and the longest answer."""
        return len(self.tree.prompt) + max(map(len, self.tree.answers), default=0)


_GAP = re.compile(r"\s+(?=\S)")
# Characters in which the start of a word is searched; not every language has spaces.
_NEAR = 20

Rendering = Callable[[Conversation], Fitted]


def fit(
    template: ChatTemplate, record: Record, room: int, counts: FitCounts, whole: Fitted | None = None
) -> TokenTree | None:
    """A record's tokens, at most `room` for prompt and longest answer, and counted; its `row` is the number of earlier
    rows.

    Args:
        whole: the result of whole_row, if known.

    Returns: None if nothing that can be learned fits, and for two answers of the same tokens.

    Raises:
        TemplateError: the template does not render it; nothing is counted.
    """
    found = fit_record(template, record, room, whole)
    counts.records += 1
    if found is None:
        counts.dropped_too_long += 1
        return None
    answers = found.tree.answers
    if len(answers) == 2 and list(answers[0]) == list(answers[1]):
        counts.dropped_identical += 1
        return None
    counts.rows_cut += found.cut
    counts.turns_dropped += found.turns_dropped
    counts.texts_cut += found.text_cut
    counts.turns_not_learned += found.turns_not_learned
    counts.longest_row_tokens = max(counts.longest_row_tokens, found.tree.tokens)
    counts.rows += 1
    return replace(found.tree, row=counts.rows - 1)


def fit_record(template: ChatTemplate, record: Record, room: int, whole: Fitted | None = None) -> Fitted | None:
    """Any record's tokens, at most `room` for prompt and longest answer; None if nothing that can be learned fits.

    Raises:
        TemplateError: the template does not render it.
    """
    if whole is None:
        whole = whole_row(template, record)
    if whole.length <= room:
        return whole
    if isinstance(record, Demonstration):
        return _shorter_demonstration(template, record, room)
    return _shorter_prompt(whole, record.prompt, _rendering(template, record), room)


def whole_row(template: ChatTemplate, record: Record) -> Fitted:
    """Any record's tokens, without a limit.

    Raises:
        TemplateError: the template does not render it.
    """
    if isinstance(record, Demonstration):
        tree, not_learned = template.learned(record)
        return Fitted(tree, turns_not_learned=not_learned)
    return _rendering(template, record)(record.prompt)


def _rendering(template: ChatTemplate, record: Prompt) -> Rendering:
    answers = _answers_of(record)
    said, fields = tuple(answers.values()), tuple(answers)
    return lambda prompt: Fitted(template.answers_tree(prompt, said, tools=record.tools, fields=fields))


def fit_answers(
    template: ChatTemplate,
    prompt: Conversation,
    answers: Iterable[str],
    room: int,
    *,
    tools: Tools = (),
    closed: bool = False,
) -> Fitted | None:
    """A prompt, cut if necessary, and its answers, if any; arguments as in ChatTemplate.answers_tree.

    Raises:
        TemplateError: the template does not render it.
    """
    said = tuple(answers)

    def fitted(messages: Conversation) -> Fitted:
        return Fitted(template.answers_tree(messages, said, closed=closed, tools=tools))

    whole = fitted(prompt)
    return whole if whole.length <= room else _shorter_prompt(whole, prompt, fitted, room)


def fit_prompt(template: ChatTemplate, prompt: Conversation, room: int, tools: Tools = ()) -> Fitted | None:
    """A prompt to be answered, cut if necessary; None if its last user turn does not fit.

    Raises:
        TemplateError: the template does not render it.
    """
    return fit_answers(template, prompt, (), room, tools=tools)


def _answers_of(record: Prompt) -> dict[str, str]:
    """The answers of a record by field."""
    match record:
        case Preference():
            return {"chosen": record.chosen, "rejected": record.rejected}
        case Vote() | Completion():
            return {"completion": record.completion}
    return {}


def _shorter_prompt(whole: Fitted, prompt: Conversation, fitted: Rendering, room: int) -> Fitted | None:
    longest = max(map(len, whole.tree.answers), default=0)
    return None if longest >= room else _cut(prompt, fitted, room)


def _shorter_demonstration(template: ChatTemplate, record: Demonstration, room: int) -> Fitted | None:
    """The last exchanges that fit and end with a learned turn, so that a long conversation is cut, not dropped."""

    def fitted(messages: Conversation) -> Fitted:
        tree, not_learned = template.learned(record.model_copy(update={"messages": messages, "supervise_from": 0}))
        return Fitted(tree, turns_not_learned=not_learned)

    learned = set(record.learned_turns)
    messages = tuple(
        turn if index in learned else turn.model_copy(update={"supervised": False})
        for index, turn in enumerate(record.messages)
    )
    opening = _opening(messages)
    starts = _exchanges(messages)
    for start, end in reversed([*zip(starts, [*starts[1:], len(messages)], strict=True)]):
        if learned.isdisjoint(range(start, end)) or not _fits_alone((*opening, *messages[start:end]), fitted, room):
            continue
        found = _cut(messages[:end], fitted, room)
        if found is not None:
            return replace(found, turns_dropped=found.turns_dropped + len(messages) - end)
    return None


def _fits_alone(exchange: Conversation, fitted: Rendering, room: int) -> bool:
    """Whether an exchange fits without earlier ones, with its user turn as short as possible.

    This is cheap; trying to cut a conversation that cannot fit costs as much as all of its exchanges.
    """
    start = _exchanges(exchange)[0]
    asked = exchange[start]
    said = asked.content[len(asked.content.rstrip()) - 1 :]
    shortest = (*exchange[:start], Message(role="user", content=said), *exchange[start + 1 :])
    return fitted(shortest).length <= room or fitted(exchange).length <= room


def _cut(messages: Conversation, fitted: Rendering, room: int) -> Fitted | None:
    """The longest end of a conversation that fits, with its system turn."""
    opening = _opening(messages)
    starts = _exchanges(messages)

    def last(count: int) -> Fitted:
        return fitted((*opening, *messages[starts[-count] :]))

    count = _most_that_fit(len(starts), lambda count: last(count).length <= room)
    if count:
        return replace(last(count), turns_dropped=starts[-count] - len(opening))
    asked, rest = messages[starts[-1]], messages[starts[-1] + 1 :]

    def shortened(characters: int) -> Fitted:
        said = asked.content[len(asked.content) - characters :]
        return fitted((*opening, Message(role="user", content=said), *rest))

    blank = len(asked.content) - len(asked.content.rstrip())
    lengths = range(blank + 1, len(asked.content))
    place = bisect_left(lengths, True, key=lambda characters: shortened(characters).length > room)
    if place == 0:
        return None
    kept = lengths[place - 1]
    found = shortened(_from_a_word(asked.content, kept))
    if found.length > room:  # less text may have more tokens
        found = shortened(kept)
    return replace(found, turns_dropped=starts[-1] - len(opening), text_cut=True)


def _most_that_fit(most: int, fits: Callable[[int], bool]) -> int:
    """The largest number of exchanges, at most `most`, that fit; 0 if one does not.

    It starts with few, as the work is quadratic and most of a long conversation does not fit.
    """
    tried, fitting = 1, 0
    while tried <= most and fits(tried):
        tried, fitting = 2 * tried, tried
    between = range(fitting + 1, min(tried, most + 1))
    return fitting + bisect_left(between, True, key=lambda count: not fits(count))


def _from_a_word(text: str, kept: int) -> int:
    """How many characters of a text's end to keep, at most `kept`, so that it starts with a word if one is near."""
    start = len(text) - kept
    gap = _GAP.search(text, start - 1, start + _NEAR)
    return kept if gap is None else len(text) - gap.end()


def _opening(messages: Conversation) -> Conversation:
    """The system turn, if there is one."""
    return messages[:1] if messages[0].role == "system" else ()


def _exchanges(messages: Conversation) -> list[int]:
    """Indices at which exchanges start."""
    return [index for index, turn in enumerate(messages) if turn.role == "user"]
