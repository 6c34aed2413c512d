"""Answers side by side: which rows are shown first, and what is said of each answer."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from prefine.comparisons.answer_metrics import LENGTH
from prefine.comparisons.result import AnswerOf, AnswerRow, Comparison
from prefine.degeneration import is_blank
from prefine.formatting import figure, plural

_EACH = 4
_MOST_ROWS = 400
_MOST_CHARACTERS = 6_000
_NO_CATEGORY = "without a category"


@dataclass(frozen=True)
class SampleTurn:
    """One message of a prompt."""

    role: str
    content: str


@dataclass(frozen=True)
class SampleAnswer:
    """One model's answer.

    Attributes:
        kind: candidate or baseline.
        facts: length and figures, as text.
        fault: blank, stuck or looping; empty for other answers.
    """

    kind: str
    content: str
    facts: list[str]
    ended: bool
    fault: str


@dataclass(frozen=True)
class ShownRow:
    """A prompt with both answers.

    Attributes:
        anchor: unique on the page.
        outcome: better, worse, same or unknown.
        change: of the figure by which rows are ordered, as text; empty if unknown.
    """

    anchor: str
    id: str
    category: str
    prompt: list[SampleTurn]
    answers: list[SampleAnswer]
    reference: str
    outcome: str
    change: str
    verdicts: list[str]
    faulty: bool


@dataclass(frozen=True)
class Selection:
    """Some rows with a heading."""

    title: str
    note: str
    rows: list[ShownRow]


@dataclass(frozen=True)
class ShownCategory:
    """All shown rows of one category."""

    name: str
    rows: list[ShownRow]


@dataclass(frozen=True)
class AnswerSections:
    """Everything that the page shows of the answers.

    Attributes:
        by: the figure by which rows are called better or worse; empty if there is none.
        left_out: number of rows that are only in answers.jsonl.
    """

    by: str = ""
    count: int = 0
    selections: list[Selection] = field(default_factory=list)
    categories: list[ShownCategory] = field(default_factory=list)
    left_out: int = 0


@dataclass(frozen=True)
class _Measure:
    """How much better the candidate's answer to a prompt is."""

    name: str
    change: Callable[[AnswerRow], float | None]
    is_verdict: bool = False


def shown_samples(comparison: Comparison, rows: Sequence[AnswerRow]) -> AnswerSections:
    """Selections (improved, worsened, random), then all rows by category."""
    if not rows:
        return AnswerSections()
    measure = _measure(comparison, rows)
    changes = [measure.change(row) if measure else None for row in rows]
    in_tokens = lengths_in_tokens(comparison)
    shown = [
        shown_row(row, measure, changes[place], anchor=f"row-{place + 1}", in_tokens=in_tokens)
        for place, row in enumerate(rows)
    ]
    known = sorted(
        (place for place, change in enumerate(changes) if change is not None), key=lambda place: -(changes[place] or 0)
    )
    best = [place for place in known if (changes[place] or 0) > 0][:_EACH]
    worst = [place for place in reversed(known) if (changes[place] or 0) < 0][:_EACH]
    chance = random.Random(0)  # noqa: S311 - the same rows for the same file
    picked = sorted(chance.sample(range(len(rows)), min(_EACH, len(rows))))
    by = measure.name if measure else ""
    first = ("Most improved", f"The candidate’s answer gained most, by {by}.")
    last = ("Most worsened", f"The candidate’s answer lost most, by {by}.")
    if measure and measure.is_verdict:
        first = ("Preferred", f"The candidate’s answer was preferred, by {by}; the first ones of the file.")
        last = ("Not preferred", f"The baseline’s answer was preferred, by {by}; the last ones of the file.")
    selections = [
        Selection(*first, [shown[place] for place in best]),
        Selection(*last, [shown[place] for place in worst]),
        Selection("Random", "Drawn by chance, the same for the same file.", [shown[place] for place in picked]),
    ]
    listed = shown[:_MOST_ROWS]
    names = sorted({row.category for row in listed})
    categories = [
        ShownCategory(name or (_NO_CATEGORY if len(names) > 1 else ""), [row for row in listed if row.category == name])
        for name in names
    ]
    return AnswerSections(
        by, len(rows), [each for each in selections if each.rows], categories, len(rows) - len(listed)
    )


def _measure(comparison: Comparison, rows: Sequence[AnswerRow]) -> _Measure | None:
    """The figure that decides if answers have it, else the reward, else the first judge; None without any."""
    decides = comparison.verdict.decided_by
    metric = next((metric for metric in comparison.metrics if metric.name == decides), None)
    judges = list(dict.fromkeys(judge for row in rows for judge in row.verdicts))
    if metric is not None and metric.better != "neither":
        sign = -1.0 if metric.better == "lower" else 1.0
        found = _by_value(decides, metric.title, sign)
        if any(found.change(row) is not None for row in rows):
            return found
    reward = _by_value("reward", "reward", 1.0)
    if decides in judges and not _judges_by(reward, rows, decides):
        return _by_verdict(decides)
    if any(reward.change(row) is not None for row in rows):
        return reward
    return _by_verdict(judges[0]) if judges else None


def _judges_by(reward: _Measure, rows: Sequence[AnswerRow], judge: str) -> bool:
    """Whether a judge's verdicts are the signs of the rewards' changes: it is the reward model, which says how much."""
    verdicts = _by_verdict(judge)
    both = [(verdicts.change(row), reward.change(row)) for row in rows if judge in row.verdicts]
    return all(change is not None and verdict == (change > 0) - (change < 0) for verdict, change in both)


def _by_value(name: str, title: str, sign: float) -> _Measure:
    def change(row: AnswerRow) -> float | None:
        now, was = _value(row.candidate, name), _value(row.baseline, name)
        return None if now is None or was is None else sign * (now - was)

    return _Measure(title, change)


def _value(answer: AnswerOf, name: str) -> float | None:
    if name in ("reward", "kl_per_token", "entropy"):
        found: float | None = getattr(answer, name)
        return found
    return float(answer.tokens) if name == "length_tokens" else answer.scores.get(name)


def _by_verdict(judge: str) -> _Measure:
    points = {"candidate": 1.0, "tie": 0.0, "baseline": -1.0}
    return _Measure(
        f"the verdicts of {judge}",
        lambda row: points[row.verdicts[judge]] if judge in row.verdicts else None,
        is_verdict=True,
    )


def lengths_in_tokens(comparison: Comparison) -> bool:
    """Whether lengths are shown in tokens: those of two models may differ, and endpoints may not count them."""
    return any(metric.name == LENGTH.name and metric.change is not None for metric in comparison.metrics)


def shown_row(
    row: AnswerRow,
    measure: _Measure | None = None,
    change: float | None = None,
    *,
    anchor: str = "",
    in_tokens: bool,
) -> ShownRow:
    """A prompt with both answers, and what is known of them.

    Args:
        measure: what rows are called better or worse by. change: its value.
        anchor: unique on the page; "" for a row that nothing refers to.
        in_tokens: see lengths_in_tokens.
    """
    outcome = "unknown" if change is None else "better" if change > 0 else "worse" if change < 0 else "same"
    size = "" if change is None or measure is None or measure.is_verdict else figure(change, 2, signed=True)
    return ShownRow(
        anchor=anchor,
        id=row.id,
        category=row.category,
        prompt=[SampleTurn(str(turn.get("role") or "unknown"), _said(turn.get("content"))) for turn in row.asked],
        answers=[
            _answer("baseline", row.baseline, in_tokens=in_tokens),
            _answer("candidate", row.candidate, in_tokens=in_tokens),
        ],
        reference=_clipped(row.reference),
        outcome=outcome,
        change=f"{measure.name} {size}" if measure and size else "",
        verdicts=[f"{judge}: {winner}" for judge, winner in row.verdicts.items()],
        faulty=any(not answer.ended or answer.degenerate for answer in (row.candidate, row.baseline)),
    )


def _answer(kind: str, answer: AnswerOf, *, in_tokens: bool) -> SampleAnswer:
    blank = is_blank(answer.text)
    figures = (("reward", answer.reward, 2), ("KL per token", answer.kl_per_token, 3))
    told = [f"{name} {figure(value, decimals)}" for name, value, decimals in figures if value is not None]
    return SampleAnswer(
        kind,
        "" if blank else _clipped(answer.text),
        [plural(answer.tokens, "token") if in_tokens else plural(len(answer.text), "character"), *told],
        answer.ended,
        "" if blank else answer.degenerate or "",
    )


def _said(content: object) -> str:
    return _clipped(content if isinstance(content, str) else "" if content is None else str(content))


def _clipped(text: str) -> str:
    if len(text) <= _MOST_CHARACTERS:
        return text
    more = plural(len(text) - _MOST_CHARACTERS, "more character")
    return f"{text[:_MOST_CHARACTERS]}… [{more} in answers.jsonl]"
