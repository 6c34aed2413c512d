"""prefine feedback export."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefine.terminal import echo

if TYPE_CHECKING:
    from prefine.data.records.stream import ReadCounts


class FeedbackRows(StrEnum):
    """What feedback is exported as."""

    votes = "votes"
    preferences = "preferences"


def export(
    to: Annotated[
        FeedbackRows,
        typer.Option(help="votes: answers with a thumb. preferences: pairs of a better and a worse answer."),
    ],
    database: Annotated[
        Path, typer.Argument(metavar="FEEDBACK_DB", help="The database that prefine serve has written.")
    ] = Path("feedback.db"),
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write JSON lines here; else print.")] = None,
) -> None:
    """Write feedback given at the server as training data; what could not become a row is counted, with the reasons.

    Training reads the database itself, too: prefine dpo RECIPE --set data.train=feedback.db.
    """
    import json
    import sys

    from prefine.data.reading.quarantine import Quarantine
    from prefine.data.records.kinds import KINDS
    from prefine.data.records.stream import read_records
    from prefine.feedback.database import require_feedback
    from prefine.runs.atomic import require_writable
    from prefine.runs.row_file import RowFile
    from prefine.terminal import visible_json

    require_feedback(database)
    stream = read_records(str(database), KINDS[to.value], quarantine=Quarantine())
    if out is None:
        for _ in stream:
            sys.stdout.write(visible_json(json.dumps(stream.row, ensure_ascii=False)) + "\n")
    else:
        require_writable(out)
        with RowFile(out, resume=False) as file:
            for _ in stream:
                file.append(stream.row)
            file.finish()
    for line in _summary(stream.counts, to.value.removesuffix("s")):
        echo(line, err=True)


def _summary(counts: ReadCounts, noun: str) -> Iterator[str]:
    """How many rows there are, and what became of everything else, by reason."""
    from prefine.formatting import plural

    yield plural(counts.records, noun)
    if counts.duplicates:
        yield f"{counts.duplicates} more say what an earlier one says"
    for reason, count in counts.left_out_reasons.most_common():
        yield f"{plural(count, 'event')} without a row: {reason}"
    for reason, count in counts.reasons.most_common():
        yield f"{plural(count, 'row')} that cannot be used: {reason}"
