"""Warnings for a reader of a run's results, in plain words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prefine.formatting import listing, plural
from prefine.report.facts import RunFacts, count, dictionaries, mapping, numbers, text, texts
from prefine.report.parts import Caution
from prefine.report.stages.registry import stage_report


def cautions(facts: RunFacts) -> list[Caution]:
    """The run's own warnings, then those that its figures give reason for."""
    return [
        *(Caution(line) for line in texts(facts.manifest.get("warnings"))),
        *_unfinished(facts),
        *_failed_checks(facts),
        *stage_report(facts).cautions(facts),
        *_not_finite(facts),
        *_rows_lost(facts),
    ]


def _unfinished(facts: RunFacts) -> Iterator[Caution]:
    if not facts.finished:
        reason = text(facts.manifest.get("ended_by"))
        yield Caution(
            f"The run is not finished: its status is “{text(facts.manifest.get('status'))}”.",
            f"The figures are those of the last recorded step.{f' It ended with: {reason}' if reason else ''}",
        )


def _failed_checks(facts: RunFacts) -> Iterator[Caution]:
    checks = dictionaries(facts.manifest.get("self_checks"))
    failed = [text(check.get("name")) or "unnamed" for check in checks if check.get("passed") is False]
    if failed:
        yield Caution(
            f"{plural(len(failed), 'self-check')} failed: {listing(failed)}.",
            "Do not trust the results until the cause is found.",
        )


def _not_finite(facts: RunFacts) -> Iterator[Caution]:
    for key, name in (("loss", "loss"), ("grad_norm", "gradient norm")):
        found = len(numbers(facts.train, key))
        rows = sum(key in row for row in facts.train)
        if rows > 0 and found < rows:
            yield Caution(
                f"{plural(rows - found, 'training step')} of {rows:,} recorded no finite {name}.",
                "The curves have gaps there.",
            )


def _rows_lost(facts: RunFacts) -> Iterator[Caution]:
    for part, value in mapping(facts.manifest.get("data")).items():
        if rows_add_up(mapping(value)) is False:
            yield Caution(
                f"The counts of the {part} data do not add up: rows in are not kept + quarantined + left out.",
                "This is a bug in prefine. Please report it.",
            )


def rows_add_up(counts: Mapping[str, Any]) -> bool | None:
    """Whether rows in = kept + quarantined + left out; None if one of the first three is not known."""
    rows_in, *parts = (count(counts.get(key)) for key in ("rows_in", "kept", "quarantined"))
    if rows_in is None or None in parts:
        return None
    left_out = count(counts.get("left_out")) or 0  # earlier releases quarantined these rows
    return rows_in == sum(part for part in parts if part is not None) + left_out
