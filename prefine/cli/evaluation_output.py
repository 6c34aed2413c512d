"""What `prefine evaluate` shows: progress of its parts, and its result in lines."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from prefine.terminal import echo

if TYPE_CHECKING:
    from prefine.comparisons.result import Comparison

_SECONDS_BETWEEN_LINES = 60.0


@contextmanager
def evaluation_progress(clock: Callable[[], float] = time.monotonic) -> Iterator[Callable[[str, int, int], None]]:
    """A function that shows how much of a part is done: bars on a terminal, lines in a log.

    Args:
        clock: seconds, monotonic.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(clock)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        tasks: dict[str, int] = {}

        def shown(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what)
            bar.update(tasks[what], completed=done, total=total)  # type: ignore[arg-type]

        yield shown


def _lines(clock: Callable[[], float]) -> Callable[[str, int, int], None]:
    latest = clock()

    def shown(what: str, done: int, total: int) -> None:
        nonlocal latest
        if clock() - latest >= _SECONDS_BETWEEN_LINES:
            latest = clock()
            echo(f"{what}: {done:,} of {total:,}", err=True)

    return shown


def said_of(comparison: Comparison, folder: Path) -> Iterator[str]:
    """The result in lines: the verdict, what got worse, what is missing, the gate, and where the report is."""
    yield f"{comparison.verdict.decision}: {comparison.verdict.sentence}"
    yield from (f"worse: {sentence}" for sentence in comparison.verdict.regressions)
    for what, why in comparison.not_computed.items():
        yield f"not computed: {what}: {why}"
    yield from (f"warning: {warning}" for warning in comparison.warnings)
    for rate in comparison.win_rates:
        yield from (f"warning: judged by {rate.judge}: {warning}" for warning in rate.warnings)
    left_out = comparison.prompts.get("left_out", {})
    for reason, count in left_out.items():
        yield f"left out: {count}: {reason}"
    for rule in comparison.gate:
        yield f"gate: {'passed' if rule.passed else 'failed'}: {rule.sentence}"
    if comparison.gate:
        yield "gate: ship" if all(rule.passed for rule in comparison.gate) else "gate: don't ship"
    yield f"report: {folder / 'report.html'}"
