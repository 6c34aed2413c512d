"""A cleaned copy of audited sources: their rows as they are, without those that an audit leaves out.

Lines of text files are copied byte for byte (as UTF-8), rows of Parquet with their types. A second file beside the copy
names every row that was left out.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from prefine.data.audit.drops import DroppedRow
from prefine.data.audit.run import Audit, AuditSettings
from prefine.data.reading.rows import Unwritable
from prefine.data.reading.source_names import source_names
from prefine.data.reading.sources import Part, Wanted, locate, read_part, text_of
from prefine.data.records.selection import Place
from prefine.errors import DataError
from prefine.runs.atomic import atomic_write

_LINE_FORMS = ("jsonl", "txt", "csv", "tsv")
_WITH_HEADER = ("csv", "tsv")
_PIECE_BYTES = 1 << 20


@dataclass
class CleanedCopy:
    """What was written.

    Attributes:
        out, dropped_file: the copy, and the list of rows that are not in it.
        rows, kept: rows read, and rows in the copy.
        reasons: rows left out, by reason.
    """

    out: Path
    dropped_file: Path
    rows: int = 0
    kept: int = 0
    reasons: Counter[str] = field(default_factory=Counter)


def dropped_path(out: Path) -> Path:
    """The file beside a copy that names the rows left out: clean.dropped.jsonl for clean.jsonl.gz."""
    return out.with_name(f"{out.name.removesuffix('.gz').rpartition('.')[0] or out.name}.dropped.jsonl")


def parts_to_copy(out: Path, settings: AuditSettings) -> list[Part]:
    """The parts of the sources, if a copy of them can have the form that the name `out` says.

    Raises:
        DataError: another form; or a source cannot be found.
    """
    parts = [part for name in source_names(list(settings.sources)) for part in locate(name, settings.text)]
    forms = {part.form for part in parts}
    wanted = _form_of(out)
    lines = forms <= {wanted} and wanted in _LINE_FORMS and (wanted not in _WITH_HEADER or len(parts) == 1)
    if wanted == "jsonl" or lines or (wanted == "parquet" and forms == {"parquet"} and len(parts) == 1):
        return parts
    several = ", which hold one table each" if wanted in forms else ""
    raise DataError(
        f"--fix is {out}, and the sources are {', '.join(sorted(forms))} files{several}",
        "Name a file that ends in .jsonl.",
    )


def write_cleaned(audit: Audit, out: Path) -> CleanedCopy:
    """Write a copy of the audited sources without the rows that the audit leaves out, and the list of those.

    Raises:
        DataError: see parts_to_copy; a row has a value that JSON cannot represent; the sources have changed since the
            audit.
        CheckpointError: a file cannot be written.
    """
    parts = parts_to_copy(out, audit.settings)
    copy = CleanedCopy(out, dropped_path(out))
    drops = audit.drops.rows()
    with ExitStack() as stack:
        writing = stack.enter_context(atomic_write(out))
        listing = stack.enter_context(atomic_write(copy.dropped_file))
        with listing.open("w", encoding="utf-8") as listed:
            copying = _Copying(copy, drops, listed)
            if _form_of(out) == "parquet":
                _copy_parquet(parts[0], writing, copying)
            else:
                with _opened(writing, out) as stream:
                    for part in parts:
                        _copy_part(part, stream, copying, _form_of(out), cast(Wanted, audit.kind), audit.settings.split)
        if copy.rows != audit.rows or copy.reasons.total() != len(drops):
            raise DataError(
                f"the sources changed since they were audited: {audit.rows:,} rows then, {copy.rows:,} now",
                "Run the command again when nothing writes to them.",
            )
    return copy


class _Copying:
    """Decides over rows and keeps count."""

    def __init__(self, copy: CleanedCopy, drops: Mapping[Place, DroppedRow], listed: Any) -> None:
        self._copy = copy
        self._drops = drops
        self._listed = listed

    def keeps(self, place: Place) -> bool:
        """Whether a row belongs to the copy; notes it if not."""
        self._copy.rows += 1
        dropped = self._drops.get(place)
        if dropped is None:
            self._copy.kept += 1
            return True
        self._copy.reasons[dropped.why.value] += 1
        other = dropped.other
        entry = {"file": place[0], "line": place[1], "reason": dropped.why.value}
        if other is not None:
            entry |= {"other_file": other[0], "other_line": other[1]}
        self._listed.write(json.dumps(entry, ensure_ascii=False) + "\n")
        return False


def _form_of(out: Path) -> str:
    return Path(out.name.removesuffix(".gz")).suffix.lower().removeprefix(".")


@contextmanager
def _opened(writing: Path, out: Path) -> Iterator[BinaryIO]:
    with writing.open("wb") as file:
        if out.suffix.lower() != ".gz":
            yield file
            return
        # Without a name and a time in its header, the same rows give the same bytes.
        with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
            yield cast(BinaryIO, packed)


def _copy_part(part: Part, stream: BinaryIO, copying: _Copying, form: str, wanted: Wanted, split: str) -> None:
    if part.form != form:
        for row in read_part(part, split=split, wanted=wanted):
            if copying.keeps((row.file, row.line)):
                stream.write(_as_json(row.value, part, row.line))
        return
    starts = [row.line for row in read_part(part, split=split)]
    rows = {line: copying.keeps((part.name, line)) for line in starts}
    keeps = True
    for number, piece in _numbered_pieces(part):
        keeps = rows.get(number, keeps)
        if keeps:
            stream.write(piece)


def _numbered_pieces(part: Part) -> Iterator[tuple[int, bytes]]:
    """The file's lines with their numbers, long ones in pieces; the last one ends with a line end, too."""
    number, last = 1, b"\n"
    with text_of(part) as text:
        while piece := text.readline(_PIECE_BYTES):
            last = piece
            yield number, piece
            number += piece.endswith(b"\n")
    if not last.endswith(b"\n"):
        yield number, b"\n"


def _as_json(value: Mapping[str, Any] | None, part: Part, line: int) -> bytes:
    if value is None or any(isinstance(item, Unwritable) for item in value.values()):
        remedy = "Name a .parquet file for --fix." if part.form == "parquet" else "Remove the row first."
        raise DataError(f"{part.name}:{line}: the row cannot be written as JSON without a loss", remedy)
    return (json.dumps(value, ensure_ascii=False) + "\n").encode()


def _copy_parquet(part: Part, writing: Path, copying: _Copying) -> None:
    import pyarrow
    import pyarrow.parquet

    number = 0
    with pyarrow.parquet.ParquetFile(str(part.path)) as table:
        schema = table.schema_arrow
        with pyarrow.parquet.ParquetWriter(str(writing), schema) as writer:
            for batch in table.iter_batches(batch_size=1_000):
                kept = [copying.keeps((part.name, number + place)) for place in range(1, len(batch) + 1)]
                number += len(batch)
                writer.write_batch(batch.filter(pyarrow.array(kept)))
