"""A prompt with a list of answers that have ranks or scores, or that are listed best first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import Any

from prefine.data.reading.rows import RowError, kind_of
from prefine.data.records.answers import finite, lone_answer
from prefine.data.records.layouts.pairs import preference
from prefine.data.records.layouts.shape import LeftOut, RowView, Shape
from prefine.data.records.turns import is_transcript, prompt_turns
from prefine.records import Preference, Prompt
from prefine.row_rules import PairRule

_PROMPTS = ("prompt", "question", "instruction")
_LISTS = ("answers", "completions", "responses")
_TEXTS = ("answer", "text", "response", "completion", "content")
_SCORES = ("score", "pm_score", "overall_score", "rating")
_BESIDE = frozenset({"ranks", "scores"})


@dataclass(frozen=True)
class RankedAnswer:
    """An answer and its place among the others: the lower the better. `score` is None where answers have ranks."""

    text: str
    place: float
    score: float | None = None


MOST_ANSWERS_FOR_ALL = 100
"""Most different answers to one prompt for the rule `all`: 4,950 pairs."""


def pairs_of(answers: Iterable[RankedAnswer], rule: PairRule, column: str) -> list[tuple[RankedAnswer, RankedAnswer]]:
    """Pairs of a better and a worse answer, by a rule; answers of equal rank give no pair.

    Of equal texts the best ranked one counts. `best_worst` pairs the first with the last, `adjacent` each with the
    next, `all` each with each.

    Raises:
        RowError: more than MOST_ANSWERS_FOR_ALL answers where the rule is `all`.
    """
    by_text: dict[str, RankedAnswer] = {}
    for answer in sorted(answers, key=lambda each: each.place):
        by_text.setdefault(answer.text, answer)
    ordered = list(by_text.values())
    if rule == "all" and len(ordered) > MOST_ANSWERS_FOR_ALL:
        raise RowError(
            column,
            f"holds {len(ordered):,} different answers, and data.pairs: all takes at most {MOST_ANSWERS_FOR_ALL}; "
            "adjacent and best_worst take any number",
        )
    candidates: dict[PairRule, Iterable[tuple[RankedAnswer, RankedAnswer]]] = {
        "best_worst": [(ordered[0], ordered[-1])],
        "adjacent": pairwise(ordered),
        "all": combinations(ordered, 2),
    }
    return [(better, worse) for better, worse in candidates[rule] if better.place < worse.place]


def difference(better: RankedAnswer, worse: RankedAnswer) -> float | None:
    """By how much the better answer's score exceeds the worse one's; None without scores."""
    return None if better.score is None or worse.score is None else better.score - worse.score


def _ranked(row: RowView) -> list[Preference]:
    prompt = row.first(*_PROMPTS)
    column = row.first(*_LISTS)
    turns = prompt_turns(row[prompt], prompt)
    answers = _answers(row, column, is_transcript(row[prompt]))
    if len({answer.text for answer in answers}) < 2:
        raise RowError(column, "holds fewer than two different answers")
    pairs = pairs_of(answers, row.pairs, column)
    if not pairs:
        raise LeftOut(column, "has no answer that is better than another")
    return [
        preference(row, (turns, better.text, worse.text), tie=False, difference=difference(better, worse))
        for better, worse in pairs
    ]


def _answers(row: RowView, column: str, in_transcript: bool) -> list[RankedAnswer]:
    listed = row[column]
    if not isinstance(listed, list):
        raise RowError(column, f"is {kind_of(listed)}, not a list of answers")
    beside = next((name for name in ("ranks", "scores") if row[name] is not None), None)
    numbers = None if beside is None else row[beside]
    if numbers is not None and not (isinstance(numbers, list) and len(numbers) == len(listed)):
        raise RowError(str(beside), f"is not a list of as many numbers as {column} has answers")
    answers = []
    for index, item in enumerate(listed):
        field = f"{column}[{index}]"
        key = _first_key(item, _TEXTS)
        said, at = (item[key], f"{field}.{key}") if key else (item, field)
        text = lone_answer(said, at, in_transcript)
        if numbers is not None:
            number, by_rank, where = numbers[index], beside == "ranks", f"{beside}[{index}]"
        elif isinstance(item, dict):
            name = _number_key(listed) or "rank"
            number, by_rank, where = item.get(name), name == "rank", f"{field}.{name}"
        else:  # in order, best first
            number, by_rank, where = index, True, field
        number = finite(number, where)
        answers.append(RankedAnswer(text, number) if by_rank else RankedAnswer(text, -number, number))
    return answers


def _first_key(item: Any, keys: Sequence[str]) -> str | None:
    return next((key for key in keys if item.get(key) is not None), None) if isinstance(item, dict) else None


def _number_key(listed: Sequence[Any]) -> str | None:
    """The key by which the answers of a list are compared."""
    return next((key for key in ("rank", *_SCORES) if any(_first_key(item, (key,)) for item in listed)), None)


def _list_of(value: Mapping[str, Any]) -> str:
    return next((name for name in _LISTS if value.get(name) is not None), _LISTS[0])


def _is_ranked(value: Mapping[str, Any]) -> bool:
    """Whether a list of answers is ranked.

    A list of plain texts does in a column `answers` (best first); in others, it may be anything.
    """
    column = _list_of(value)
    listed = value.get(column)
    if not isinstance(listed, list) or not listed:
        return False
    if any(value.get(name) is not None for name in _BESIDE):
        return True
    if any(isinstance(item, dict) for item in listed):
        return _number_key(listed) is not None
    return column == "answers" and all(isinstance(item, str) for item in listed)


def _is_numbered(value: Mapping[str, Any]) -> bool:
    """Whether a list of answers has ranks or scores."""
    beside = any(value.get(name) is not None for name in _BESIDE)
    return _is_ranked(value) and (beside or any(isinstance(item, dict) for item in value[_list_of(value)]))


def _asked(row: RowView) -> list[Prompt]:
    column = row.first(*_PROMPTS)
    return [Prompt(prompt=row.conversation(prompt_turns(row[column], column)), **row.common)]


_NEEDS = (" or ".join(_PROMPTS), " or ".join(_LISTS))
RANKED = Shape("ranked or scored answers", _NEEDS, _ranked, may_have=_BESIDE | {"margin"}, when=_is_ranked)
NUMBERED = replace(RANKED, when=_is_numbered)
"""Columns whose lists can only be ranked answers, not several right ones."""
ASKED = Shape("question and answers", _NEEDS, _asked, when=_is_ranked)
