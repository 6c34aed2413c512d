"""Progress of work of unknown length, on standard error: one changing line on a terminal, a line now and then in a
log.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prefine.terminal import echo

_SECONDS_BETWEEN_LINES = 60.0


@contextmanager
def counting(what: str, clock: Callable[[], float] = time.monotonic) -> Iterator[Callable[[int], None]]:
    """A function that shows the number of finished rows.

    Args:
        what: name of the work, such as "generating".
        clock: seconds, monotonic.
    """
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(what, clock)
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what)
        yield lambda rows: bar.update(task, description=f"{what}: {rows:,} rows")


def _lines(what: str, clock: Callable[[], float]) -> Callable[[int], None]:
    latest = clock()

    def told(rows: int) -> None:
        nonlocal latest
        if clock() - latest >= _SECONDS_BETWEEN_LINES:
            latest = clock()
            echo(f"{what}: {rows:,} rows", err=True)

    return told
