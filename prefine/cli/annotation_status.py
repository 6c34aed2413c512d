"""What `prefine annotate status` shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefine.annotation.records import ProjectProgress


def progress_lines(progress: ProjectProgress) -> Iterator[str]:
    """How far the project and each annotator are, in lines."""
    from prefine.formatting import duration, plural

    yield (
        f"{plural(progress.items, 'item')}, {progress.complete} of them complete; "
        f"{progress.votes} votes, {progress.missing} missing"
    )
    for each in progress.annotators:
        details = [
            *([f"{plural(each.skipped, 'skip')}"] if each.skipped else []),
            *([f"{plural(each.repeats, 'repeat')}"] if each.repeats else []),
            *([f"median {duration(each.seconds)}"] if each.votes else []),
            *(["paused"] if each.paused else []),
        ]
        yield f"  {each.name}: {plural(each.votes, 'vote')}{_in_brackets(details)}"


def _in_brackets(details: Sequence[str]) -> str:
    return f" ({', '.join(details)})" if details else ""
