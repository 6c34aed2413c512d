"""What an evaluation of another program consists of: cases with expected answers, and battles of two answers."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from prefine.comparisons.result import AnswerRow
from prefine.errors import DataError
from prefine.records import Conversation, Demonstration, Preference, Prompt

Turns = tuple[dict[str, str], ...]
"""Role and content of each turn."""

# Columns of a prompt's row that hold what its answer should be, the first that a row has.
_REFERENCES = ("references", "reference", "ideal", "expected")
# Columns of a preference that say who judged it, when, and which models and runs the answers are of.
_ORIGIN = ("annotators", "voted_at", "source", "model", "run", "rejected_model", "rejected_run")
_FEWEST = 2
_HAS_TOOLS = "has tools, which these formats cannot hold"
_HAS_BLOCKS = "has content other than text, which these formats cannot hold"


@dataclass(frozen=True)
class Case:
    """A prompt and the answers that are right; at least one."""

    id: str
    prompt: Turns
    expected: tuple[str, ...]
    category: str = ""


@dataclass(frozen=True)
class Battle:
    """Two answers to a prompt, in an order that says nothing about which is better.

    Attributes:
        sides: whose the first and the second answer are: chosen and rejected, or candidate and baseline.
        better: the side that people preferred, None if that is not known.
        origin: the annotators' pseudonyms, the time of the last vote, models and runs, as far as they are known.
    """

    id: str
    prompt: Turns
    answers: tuple[str, str]
    sides: tuple[str, str]
    better: str | None = None
    category: str = ""
    origin: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Suite:
    """Cases and battles of one source.

    Attributes:
        left_out: rows that cannot be written, by reason.
    """

    cases: list[Case] = field(default_factory=list)
    battles: list[Battle] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def require(self) -> None:
        """Leave a single case out beside battles, or a single battle beside cases: alone, it has no spread.

        Raises:
            DataError: there is nothing to write, or too little for a spread.
        """
        both = len(self.cases) + len(self.battles) > _FEWEST
        for name, found in (("cases", self.cases), ("battles", self.battles)):
            if len(found) == 1 and both:
                found.clear()
                self.left_out[f"is the only one of the {name}, and a result needs {_FEWEST}"] += 1
            elif len(found) == 1:
                raise DataError(f"only one of the {name} can be written, and a result needs {_FEWEST}", "Add rows.")
        if not self.cases and not self.battles:
            reasons = "; ".join(f"{reason} ({count})" for reason, count in self.left_out.most_common(3))
            raise DataError(
                f"no row can be written{f': {reasons}' if reasons else ''}",
                "Give preference pairs, demonstrations, prompts with a column `reference`, or answers.jsonl.",
            )


def suite_of_records(records: Iterable[Prompt | Demonstration]) -> Suite:
    """Battles of preferences; cases of demonstrations, and of prompts with a column `reference` or `references`.

    A demonstration's last learned turn is its expected answer. Ties and rows with tools are left out.
    """
    suite = Suite()
    for number, record in enumerate(records):
        name = record.id or str(number)
        expected: tuple[str, ...]
        if isinstance(record, Demonstration):
            at = record.learned_turns[-1]
            messages, expected = record.messages[:at], (record.messages[at].content,)
        else:
            messages, expected = record.prompt, _expected(record.extra)
        prompt = _turns(messages)
        if record.tools or prompt is None:
            suite.left_out[_HAS_TOOLS] += 1
        elif isinstance(record, Preference) and record.tie:
            suite.left_out["is a tie"] += 1
        elif isinstance(record, Preference):
            pair = (("chosen", record.chosen), ("rejected", record.rejected))
            origin = {column: record.extra[column] for column in _ORIGIN if column in record.extra}
            category = str(record.extra.get("category") or "")
            suite.battles.append(replace(_battle(name, prompt, pair, "chosen", category), origin=origin))
        elif not any(text.strip() for text in expected):
            suite.left_out["has no expected answer"] += 1
        else:
            suite.cases.append(Case(name, prompt, expected, str(record.extra.get("category") or "")))
    return suite


def suite_of_answers(rows: Iterable[AnswerRow]) -> Suite:
    """Battles of the candidate's and the baseline's answers; cases of prompts with a reference.

    Several answers to a prompt are several battles, but one case.
    """
    suite = Suite()
    asked: set[str] = set()
    for row in rows:
        if reason := _HAS_TOOLS if row.tools else _unfit(row.prompt):
            suite.left_out[reason] += 1
            continue
        prompt = tuple({"role": str(turn["role"]), "content": turn["content"]} for turn in row.prompt)
        if row.reference.strip() and (key := json.dumps([prompt, row.reference])) not in asked:
            asked.add(key)
            suite.cases.append(Case(row.id, prompt, (row.reference,), row.category))
        if row.candidate.text == row.baseline.text:
            suite.left_out["has the same answer twice"] += 1
        elif not row.candidate.text.strip() or not row.baseline.text.strip():
            suite.left_out["has a blank answer"] += 1
        else:
            pair = (("candidate", row.candidate.text), ("baseline", row.baseline.text))
            suite.battles.append(_battle(row.id, prompt, pair, None, row.category))
    return suite


def _battle(
    name: str, prompt: Turns, pair: Sequence[tuple[str, str]], better: str | None, category: str = ""
) -> Battle:
    """A battle whose order depends only on the texts: judges favour a position."""
    digest = hashlib.sha256("\0".join([*(turn["content"] for turn in prompt), *sorted(t for _, t in pair)]).encode())
    by_text = sorted(pair, key=lambda each: each[1])
    first, second = by_text if digest.digest()[0] % 2 else reversed(by_text)
    return Battle(name, prompt, (first[1], second[1]), (first[0], second[0]), better, category)


def _expected(extra: dict[str, Any]) -> tuple[str, ...]:
    """Texts and numbers, 0 included. Which text a truth value stands for is not known, so it is none."""
    found: Any = next((extra[name] for name in _REFERENCES if extra.get(name) not in (None, "", [])), [])
    listed = found if isinstance(found, list) else [found]
    plain = [each for each in listed if isinstance(each, str | int | float) and not isinstance(each, bool)]
    return tuple(str(each) for each in plain if str(each).strip())


def _unfit(turns: Sequence[Mapping[str, Any]]) -> str:
    """Why a row's turns are more than roles and texts; "" if they are not."""
    if any(turn.get("tool_calls") or turn.get("role") == "tool" for turn in turns):
        return _HAS_TOOLS
    return "" if all(isinstance(turn.get("content"), str) for turn in turns) else _HAS_BLOCKS


def _turns(messages: Conversation) -> Turns | None:
    """Role and content; None if a turn has more to say."""
    if any(turn.tool_calls or turn.role == "tool" for turn in messages):
        return None
    return tuple({"role": turn.role, "content": turn.content} for turn in messages)
