"""How much of the parts of `prefine evaluate` is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prefine.terminal import echo

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
