"""Two answers to one prompt with numbers that say which is better: HelpSteer, SHP, WebGPT, summaries."""

from __future__ import annotations

import re
from typing import Any

from prefine.data.reading.rows import RowError, kind_of
from prefine.data.records.answers import finite, lone_answer
from prefine.data.records.layouts.pairs import preference
from prefine.data.records.layouts.shape import RowView, Shape
from prefine.data.records.turns import prompt_turns, said_text
from prefine.records import Message, Preference

# HelpSteer2 writes the turns of a long prompt in one text (arXiv 2410.01257, the data card).
_STEER_MARKER = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")


def _strength(row: RowView) -> list[Preference]:
    """HelpSteer2 and 3: below 0 the first answer is better, above 0 the second; 0 is a tie."""
    third = row["preference_strength"] is None
    column = "overall_preference" if third else "preference_strength"
    names = ("response1", "response2") if third else ("response_1", "response_2")
    prompt = row.first("prompt", "context")
    strength = finite(row[column], column)
    first, second = (lone_answer(row[name], name) for name in names)
    pair = (_steer_turns(row[prompt], prompt), *((second, first) if strength > 0 else (first, second)))
    return [preference(row, pair, tie=strength == 0, difference=abs(strength))]


def _steer_turns(value: Any, field: str) -> list[Message]:
    if not isinstance(value, str) or not _STEER_MARKER.search(value):
        return prompt_turns(value, field)
    first, *rest = _STEER_MARKER.split(value)
    said = [("User", first), *zip(rest[::2], rest[1::2], strict=True)]
    return [
        Message(role="user" if name == "User" else "assistant", content=said_text(text, field))
        for name, text in said
        if text or name == "User"  # an empty last turn marks the place of the answer
    ]


def _shp(row: RowView) -> list[Preference]:
    """SHP: `labels` is 1 where A is preferred, 0 where B is."""
    label = row["labels"]
    if not isinstance(label, bool | int | float) or label not in (0, 1):
        raise RowError(
            "labels", f"is {label if isinstance(label, float | int) else kind_of(label)}, not 1 (A) or 0 (B)"
        )
    answers = ("human_ref_A", "human_ref_B")
    scores = ("score_A", "score_B")
    difference = None
    if all(row[name] is not None for name in scores):
        high, low = scores if label else scores[::-1]
        difference = finite(row[high], high) - finite(row[low], low)
        if difference < 0:
            raise RowError(high, f"is less than {low}: the scores contradict labels")
    asked = RowView({name: item for name, item in row.value.items() if name != "history"}, row.common)
    prompt = prompt_turns(row["history"], "history")
    first, second = (lone_answer(row[name], name) for name in (answers if label else answers[::-1]))
    return [preference(asked, (prompt, first, second), tie=False, difference=difference)]


def _webgpt(row: RowView) -> list[Preference]:
    """WebGPT: the answer with the higher score is better; equal scores are a tie."""
    question = row["question"]
    if isinstance(question, dict):
        question = question.get("full_text")
    turns = prompt_turns(question, "question")
    scores = [finite(row[name], name) for name in ("score_0", "score_1")]
    answers = [lone_answer(row[name], name) for name in ("answer_0", "answer_1")]
    best = scores.index(max(scores))
    difference = abs(scores[0] - scores[1])
    return [preference(row, (turns, answers[best], answers[1 - best]), tie=difference == 0, difference=difference)]


def _summaries(row: RowView) -> list[Preference]:
    """Summarise from feedback (Stiennon et al. 2020, arXiv 2009.01325; the query's form is that of its table 7)."""
    choice, listed = row["choice"], row["summaries"]
    if isinstance(choice, bool) or choice not in (0, 1):
        raise RowError("choice", f"is {choice if isinstance(choice, float | int) else kind_of(choice)}, not 0 or 1")
    if not (isinstance(listed, list) and len(listed) == 2 and all(isinstance(each, dict) for each in listed)):
        raise RowError("summaries", "is not a list of two summaries")
    texts = [lone_answer(each.get("text"), f"summaries[{index}].text") for index, each in enumerate(listed)]
    turns = [Message(role="user", content=_summary_query(row["info"]))]
    return [preference(row, (turns, texts[int(choice)], texts[1 - int(choice)]), tie=False)]


def _summary_query(info: Any) -> str:
    if not isinstance(info, dict):
        raise RowError("info", f"is {kind_of(info)}, not an object")
    if info.get("post") is None:
        return f"Article: {said_text(info.get('article'), 'info.article')}\n\nTL;DR:"
    parts = [("SUBREDDIT: r/", "subreddit"), ("TITLE: ", "title"), ("POST: ", "post")]
    said = [label + said_text(info[name], f"info.{name}") for label, name in parts if info.get(name)]
    return "\n\n".join([*said, "TL;DR:"])


SCORED = (
    Shape(
        "answers with a strength",
        (
            "prompt or context",
            "response_1 or response1",
            "response_2 or response2",
            "preference_strength or overall_preference",
        ),
        _strength,
    ),
    Shape("SHP", ("history", "human_ref_A", "human_ref_B", "labels"), _shp, may_have=frozenset({"score_A", "score_B"})),
    Shape("WebGPT", ("question", "answer_0", "answer_1", "score_0", "score_1"), _webgpt),
    Shape("summaries", ("info", "summaries", "choice"), _summaries),
)
