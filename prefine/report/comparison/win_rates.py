"""Win rates and the regression set as bars on a scale from 0 to 100 %."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prefine.comparisons.result import AnswerRow, Comparison, Estimate, RegressionGroup, WinRate
from prefine.comparisons.statistics import ALL_CATEGORIES
from prefine.formatting import INTERVAL, figure, percent, percent_range, plural, whole
from prefine.intervals import Interval
from prefine.report.comparison.figures import Mark, mark_of, p_text
from prefine.report.comparison.samples import ShownRow, lengths_in_tokens, shown_row
from prefine.report.parts import TableRow


@dataclass(frozen=True)
class BarPart:
    """A piece of a stacked bar; width in percent."""

    kind: str
    name: str
    count: int
    width: float


@dataclass(frozen=True)
class RateLine:
    """A share with its interval; places in percent of the scale."""

    title: str
    value: float
    low: float | None
    high: float | None
    text: str
    range: str


@dataclass(frozen=True)
class ShownWinRate:
    """One judge's win rate."""

    judge: str
    mark: Mark
    sentence: str
    pieces: list[BarPart]
    lines: list[RateLine]
    length_control: str
    facts: list[TableRow]
    warnings: list[str]
    why_not: str


def win_rates(comparison: Comparison) -> list[ShownWinRate]:
    """Each judge's wins, ties and losses, and the rates."""
    return [_win_rate(each) for each in comparison.win_rates]


def _win_rate(found: WinRate) -> ShownWinRate:
    lines = [
        ("ties as one half", found.rate),
        ("without ties", found.decided if found.ties else None),
        ("at equal length", found.length_controlled),
    ]
    return ShownWinRate(
        judge=found.judge,
        mark=mark_of(found.finding, found.rate),
        sentence=found.sentence,
        pieces=_pieces(found),
        lines=[rate_line(title, each) for title, each in lines if each is not None],
        length_control=found.length_control,
        facts=_facts(found),
        warnings=found.warnings,
        why_not=found.why_not,
    )


def _pieces(found: WinRate) -> list[BarPart]:
    counts = (("win", "candidate", found.wins), ("tie", "tie", found.ties), ("loss", "baseline", found.losses))
    total = sum(count for _, _, count in counts)
    return [BarPart(kind, name, count, round(100 * count / total, 3)) for kind, name, count in counts if count]


def rate_line(title: str, share: Estimate) -> RateLine:
    """A share as a line of a scale."""
    low, high = (None if end is None else round(100 * end, 3) for end in (share.low, share.high))
    return RateLine(title, round(100 * share.value, 3), low, high, percent(share.value), _ends(share))


def _ends(share: Estimate) -> str:
    if share.low is None or share.high is None:
        return ""
    return percent_range(Interval(share.low, share.high))


def _facts(found: WinRate) -> list[TableRow]:
    rows = [
        TableRow("p, corrected" if found.p_adjusted is not None else "p", [p_text(_p(found))]),
        TableRow("same verdict in both orders", [_with_range(found.consistency)]),
        TableRow(
            "prompts that would settle it", [f"about {whole(found.more_prompts)} more" if found.more_prompts else ""]
        ),
        *(TableRow(key.replace("_", " "), [_spent(key, value)]) for key, value in found.spent.items()),
        *(TableRow(f"no verdict: {reason}", [plural(count, "prompt")]) for reason, count in found.failed.items()),
    ]
    return [row for row in rows if row.cells != [""]]


def _p(found: WinRate | RegressionGroup) -> float | None:
    return found.p if found.p_adjusted is None else found.p_adjusted


def _with_range(share: Estimate | None) -> str:
    if share is None:
        return ""
    ends = _ends(share)
    return f"{percent(share.value)}{f' ({INTERVAL} {ends})' if ends else ''}"


def _spent(key: str, value: float) -> str:
    return figure(value, 4 if "cost" in key else 0) if value == value else ""


@dataclass(frozen=True)
class ShownRegression:
    """One category of the regression set.

    Attributes:
        examples: ids of the items that only the baseline passed. rows: these with both answers, as far as known.
    """

    title: str
    mark: Mark
    candidate: RateLine
    baseline: RateLine
    p: str
    lost: int
    gained: int
    sentence: str
    examples: list[str]
    rows: list[ShownRow]


def regression(comparison: Comparison, checked: Sequence[AnswerRow]) -> list[ShownRegression]:
    """Each category of the regression set, what got worse first.

    Args:
        checked: of regression.jsonl, for the lost items side by side; empty if there are none.
    """
    order = {"worse": 0, "no difference shown": 1, "better": 2}
    groups = sorted(comparison.regression, key=lambda group: order.get(group.finding, 3))
    in_tokens = lengths_in_tokens(comparison)
    lost = {row.id: shown_row(row, in_tokens=in_tokens) for row in checked}
    return [
        ShownRegression(
            group.title,
            mark_of(group.finding, group.change),
            rate_line("candidate", group.candidate),
            rate_line("baseline", group.baseline),
            p_text(_p(group)),
            group.lost,
            group.gained,
            group.sentence,
            examples,
            [lost[name] for name in examples if name in lost],
        )
        for group in groups
        for examples in [[] if group.category == ALL_CATEGORIES else group.examples]  # those of all are in the others
    ]
