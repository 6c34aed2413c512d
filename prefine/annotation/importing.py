"""Rows -> items of a project: preference pairs, rows with several answers, answers of several models, evaluations.

Which it is, the rows say:

- the folder of `prefine evaluate`: both answers to each prompt;
- rows with `prompt` and `answers`, a list of texts or of objects with `text`, `model` and `run`;
- preference pairs in any layout of docs/data.md; what they say about which answer is better is not shown to anybody;
- prompts with one answer each, as `prefine generate` writes them: answers to the same prompt become one item. A file is
  a model, unless its rows have a column `model`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from prefine.annotation.records import ANSWERS, AnnotationItem, JudgedAnswer, Kind, PromptTurn
from prefine.comparisons.result import AnswerRow
from prefine.data.reading.quarantine import Quarantine
from prefine.data.reading.rows import has_lone_surrogate
from prefine.data.reading.sources import read_rows
from prefine.data.records.kinds import kind_of_sources
from prefine.data.records.stream import read_records
from prefine.degeneration import is_blank
from prefine.errors import DataError
from prefine.paths import model_name
from prefine.records import Completion, Preference, Prompt

_LOOKED_AT = 20
_TOOLS = "has tools, which the page cannot show"
_CHOSEN, _REJECTED = "chosen", "rejected"
_ROLES = ("system", "user", "assistant")


@dataclass
class ImportedItems:
    """Items of sources.

    Attributes:
        left_out: rows that give no item, by reason.
    """

    items: list[AnnotationItem] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def import_items(sources: Sequence[str], kind: Kind) -> ImportedItems:
    """The items that sources give for a project of a kind.

    For thumbs and rewriting each answer becomes an item of its own.

    Args:
        sources: files, folders or data sets; see above.

    Raises:
        DataError: a source cannot be read, or nothing in them gives an item.
    """
    found = ImportedItems()
    single: list[str] = []
    for source in sources:
        if _has_answers(source):
            found.items += _with_answers(source, found.left_out)
        elif kind_of_sources([source]) == "preferences":
            found.items += _pairs(source, found.left_out)
        else:
            single.append(source)
    found.items += _grouped(single, found.left_out)
    found.items = [*_fitting(found.items, kind, found.left_out)]
    if not found.items:
        reasons = "; ".join(f"{reason} ({count})" for reason, count in found.left_out.most_common(3))
        raise DataError(
            f"{', '.join(sources)}: no row gives an item of kind {kind}{f': {reasons}' if reasons else ''}",
            "Give preference pairs, rows with prompt and answers, or files of answers to the same prompts.",
        )
    return found


def items_of_comparison(rows: Iterable[AnswerRow], candidate: str, baseline: str, kind: Kind) -> ImportedItems:
    """The items of an evaluation's answers.jsonl.

    Args:
        candidate, baseline: the models' names, which are also their runs. `./runs/dpo/` is `runs/dpo`, so that the
            same comparison adds nothing, however it is typed.
    """
    found = ImportedItems()
    names = [model_name(name) for name in (candidate, baseline)]
    for row in rows:
        turns = _turns([_told(turn) for turn in row.prompt])
        if turns is None:
            found.left_out[_TOOLS] += 1
            continue
        answers = tuple(
            JudgedAnswer("", side.text, name, name)
            for name, side in zip(names, (row.candidate, row.baseline), strict=True)
        )
        found.items.append(AnnotationItem(0, row.id, turns, row.category, answers))
    found.items = [*_fitting(found.items, kind, found.left_out)]
    if not found.items:
        raise DataError("no prompt has two different answers to judge", "Name other prompts or models.")
    return found


def _fitting(items: Iterable[AnnotationItem], kind: Kind, left_out: Counter[str]) -> Iterator[AnnotationItem]:
    """Items with as many answers as the kind takes, none of them blank or there twice."""
    fewest, most = ANSWERS[kind]
    for item in items:
        answers: dict[str, JudgedAnswer] = {}
        for each in item.answers:
            if is_blank(each.text):
                left_out["an answer is blank"] += 1
            elif each.text in answers:
                left_out["an answer is there twice"] += 1
            else:
                answers[each.text] = each
        if most == 1:
            for number, each in enumerate(answers.values(), start=1):
                name = f"{item.name}/{number}" if len(answers) > 1 and item.name else item.name
                yield AnnotationItem(0, name, item.prompt, item.category, (each,))
        elif len(answers) < fewest:
            left_out[f"has not {fewest} different answers"] += 1
        elif len(answers) > most:
            left_out[f"has more than {most} answers"] += 1
        else:
            yield AnnotationItem(0, item.name, item.prompt, item.category, tuple(answers.values()))


def _has_answers(source: str) -> bool:
    """Whether the first rows have a list of answers."""
    for row in islice(read_rows(source), _LOOKED_AT):
        if row.value is not None:
            return "prompt" in row.value and isinstance(row.value.get("answers"), list)
    return False


def _with_answers(source: str, left_out: Counter[str]) -> Iterator[AnnotationItem]:
    for row in read_rows(source):
        value = row.value
        if value is None:
            left_out[row.problem.reason if row.problem else "cannot be read"] += 1
            continue
        prompt, answers = value.get("prompt"), value.get("answers")
        listed = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        is_chat = isinstance(listed, list) and all(isinstance(each, dict) for each in listed)
        turns = _turns([_told(each) for each in listed]) if is_chat and listed else None
        given = [_answer(each, place) for place, each in enumerate(answers, 1)] if isinstance(answers, list) else [None]
        if turns is None:
            left_out["prompt is neither text nor turns of system, user and assistant that end with the user"] += 1
        elif None in given:
            left_out["answers is not a list of texts, or of objects with text"] += 1
        else:
            name = value.get("id")
            yield AnnotationItem(
                0,
                _written(str(name)) if isinstance(name, str | int) else "",
                turns,
                _said(value, "category"),
                tuple(each for each in given if each is not None),
            )


def _answer(value: Any, place: int) -> JudgedAnswer | None:
    if has_lone_surrogate(value):
        return None
    if isinstance(value, str):
        return JudgedAnswer("", value, f"answer {place}")
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        return None
    return JudgedAnswer("", value["text"], _said(value, "model") or f"answer {place}", _said(value, "run"))


def _pairs(source: str, left_out: Counter[str]) -> Iterator[AnnotationItem]:
    stream = read_records([source], Preference, quarantine=Quarantine(None))
    for record in stream:
        turns = _prompt_turns(record)
        if turns is None:
            left_out[_TOOLS] += 1
            continue
        models = _said(stream.row, "model") or _CHOSEN, _said(stream.row, "rejected_model") or _REJECTED
        answers = (
            JudgedAnswer("", record.chosen, models[0], _said(stream.row, "run")),
            JudgedAnswer("", record.rejected, models[1], _said(stream.row, "rejected_run")),
        )
        yield AnnotationItem(0, _written(record.id or ""), turns, _said(stream.row, "category"), answers)
    left_out.update(stream.counts.unused)


def _grouped(sources: Sequence[str], left_out: Counter[str]) -> Iterator[AnnotationItem]:
    """One item for each prompt, with the answers of all sources in their order."""
    found: dict[str, AnnotationItem] = {}
    for source in sources:
        stream = read_records([source], Completion, quarantine=Quarantine(None), deduplicate=False)
        for record in stream:
            turns = _prompt_turns(record)
            if turns is None:
                left_out[_TOOLS] += 1
                continue
            run = _said(stream.row, "run") or _written(source)
            model = _said(stream.row, "model") or _written(Path(source).stem)
            answer = JudgedAnswer("", record.completion, model, run)
            key = json.dumps([[turn.role, turn.content] for turn in turns])
            item = found.get(key) or AnnotationItem(
                0, _written(record.id or ""), turns, _said(stream.row, "category"), ()
            )
            found[key] = AnnotationItem(0, item.name, turns, item.category, (*item.answers, answer))
        left_out.update(stream.counts.unused)
    yield from found.values()


def _prompt_turns(record: Prompt) -> tuple[PromptTurn, ...] | None:
    if record.tools:
        return None
    return _turns([(turn.role, turn.content, bool(turn.tool_calls)) for turn in record.prompt])


def _told(turn: dict[str, Any]) -> tuple[str, Any, bool]:
    """Role, content and whether it calls tools."""
    return str(turn.get("role")), turn.get("content"), bool(turn.get("tool_calls"))


def _turns(told: Sequence[tuple[str, Any, bool]]) -> tuple[PromptTurn, ...] | None:
    """The turns; None if they do not end with a user's, or one is not text or of a tool."""
    if not told or told[-1][0] != "user":
        return None
    if any(role not in _ROLES or calls or not isinstance(content, str) for role, content, calls in told):
        return None
    if any(has_lone_surrogate(content) for _, content, _ in told):
        return None
    return tuple(PromptTurn(role, content) for role, content, _ in told)


def _said(row: dict[str, Any], column: str) -> str:
    value = row.get(column)
    return _written(value) if isinstance(value, str) else ""


def _written(text: str) -> str:
    """A name with what UTF-8 cannot write (an undecodable byte of a file's name, say) as its escape."""
    return text.encode("utf-8", "backslashreplace").decode()
