"""Two files of answers, as `prefine generate` writes them, as the rows of a comparison."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefine.comparisons.result import AnswerOf, AnswerRow
from prefine.data.reading.quarantine import Quarantine
from prefine.data.records.stream import read_records
from prefine.degeneration import is_blank
from prefine.errors import DataError
from prefine.records import Completion


@dataclass(frozen=True)
class AnswerPairs:
    """What two files have in common.

    Attributes:
        rows: a row for each prompt that both files answer; of several answers to a prompt, first with first.
        left_out: rows of either file that are not used, by reason.
        warnings: for the user.
    """

    rows: list[AnswerRow]
    left_out: dict[str, int]
    warnings: list[str]


def paired_answers(candidate: Path, baseline: Path) -> AnswerPairs:
    """The answers of two files to the same prompts, in the order of the first file.

    Raises:
        DataError: a file cannot be read or has no answers, or they have no prompt in common.
    """
    left_out: Counter[str] = Counter()
    ours, theirs = (_answers(path, left_out) for path in (candidate, baseline))
    rows: list[AnswerRow] = []
    seen: Counter[str] = Counter()
    for key, answers in ours.items():
        for one, other in zip(answers, theirs.get(key, ()), strict=False):
            seen[one.id] += 1
            rows.append(
                AnswerRow(
                    id=one.id if seen[one.id] == 1 else f"{one.id}#{seen[one.id]}",
                    category=one.category,
                    prompt=one.prompt,
                    tools=one.tools,
                    candidate=one.answer,
                    baseline=other.answer,
                )
            )
    if not rows:
        raise DataError(
            f"{candidate} and {baseline} have no prompt in common",
            "Name two files of answers to the same prompts, as `prefine generate` writes them.",
        )
    for path, found in ((candidate, ours), (baseline, theirs)):
        if alone := sum(map(len, found.values())) - len(rows):
            left_out[f"answers of {path.name} without one of the other file"] += alone
    counted = all(one.counted for each in (ours, theirs) for answers in each.values() for one in answers)
    lengths = "The files do not say how many tokens an answer has (tokens): lengths are those of words."
    return AnswerPairs(rows, dict(left_out), [] if counted else [lengths])


@dataclass(frozen=True)
class _Answer:
    """One row of a file; `counted`: it says how many tokens the answer has."""

    id: str
    category: str
    prompt: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    answer: AnswerOf
    counted: bool


def _answers(path: Path, left_out: Counter[str]) -> dict[str, list[_Answer]]:
    """Each prompt's answers, by the prompt's turns."""
    found: dict[str, list[_Answer]] = defaultdict(list)
    stream = read_records([str(path)], Completion, quarantine=Quarantine(None), deduplicate=False)
    for number, record in enumerate(stream, start=1):
        prompt = [turn.model_dump(mode="json") for turn in record.prompt]
        row = stream.row
        tokens, category = row.get("tokens"), row.get("category")
        counted = isinstance(tokens, int) and not isinstance(tokens, bool) and tokens >= 0
        answer = AnswerOf(
            text=record.completion,
            tokens=tokens if counted else len(record.completion.split()),  # type: ignore[arg-type]
            ended=row.get("finish_reason") in (None, "stop"),
            degenerate="blank" if is_blank(record.completion) else None,
        )
        name = record.id or str(number)
        tools = list(record.tools)
        key = json.dumps([prompt, tools], sort_keys=True)
        found[key].append(_Answer(name, category if isinstance(category, str) else "", prompt, tools, answer, counted))
    for reason, count in stream.counts.unused.items():
        left_out[f"{path.name}: {reason}"] += count
    return found
