"""A source -> a stream of rows. A fault in one row is a problem of that row only; a broken file is a DataError.

A source is a file (.jsonl, .json, .csv, .tsv, .txt, .parquet, each also .gz), a folder of such files, a folder written
by `datasets.save_to_disk`, a `feedback.db` of `prefine serve`, a `project.db` of `prefine annotate`, a Hugging Face
dataset (`owner/name`, `hf:owner/name`, `hf:owner/name#config`), or rows in memory, under the name that
`prefine.data.reading.memory_rows.memory_source` gives them.
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, TypeAlias, cast

from prefine.data.reading.arrow_rows import is_saved_dataset, read_hub_dataset, read_parquet, read_saved_dataset
from prefine.data.reading.csv_rows import read_csv
from prefine.data.reading.feedback_rows import Wanted, is_feedback, read_feedback, require_feedback
from prefine.data.reading.json_rows import read_json_array, read_jsonl
from prefine.data.reading.memory_rows import MEMORY, is_held, read_memory
from prefine.data.reading.rows import Problem, Row, printable
from prefine.data.reading.text_files import Buffered, Note, read_lines, utf8_stream
from prefine.errors import DataError, MissingDataError
from prefine.nearby import mistyped, similar_path
from prefine.paths import expanded
from prefine.text_form import AS_FOUND, TextForm

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["KNOWN_FILES", "Part", "Problem", "Row", "Wanted", "locate", "read_part", "read_rows"]

KNOWN_FILES = (
    ".jsonl, .json, .csv, .tsv, .txt, .parquet, each also with .gz, feedback.db of prefine serve, "
    "and project.db of prefine annotate"
)

_FileForm: TypeAlias = Literal["jsonl", "json", "csv", "tsv", "txt", "parquet"]
_FORMS: dict[str, _FileForm] = {
    ".jsonl": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "txt",
    ".parquet": "parquet",
}
_DATABASES = frozenset({".db", ".sqlite", ".sqlite3"})
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(#[\w.-]+)?")
_PEEKED_BYTES = 8192
_BUFFER_BYTES = 256 * 1024
_TELLTALE_STARTS = {
    b"\x1f\x8b": ("is gzip-compressed", "Add .gz to its name."),
    b"PAR1": ("is a Parquet file", "Name it .parquet."),
    b"PK\x03\x04": ("is a zip archive", "Unpack it first."),
}


@dataclass(frozen=True, slots=True)
class Part:
    """One file, saved folder, database, hub dataset or set of rows in memory: one table with one set of columns.

    `name` is how rows refer to it. `path` is None for a hub dataset and for rows in memory. `text`, for text files, is
    their delimiter and encoding.
    """

    name: str
    form: _FileForm | Literal["saved", "hub", "memory", "feedback"]
    path: Path | None = None
    compressed: bool = False
    text: TextForm = AS_FOUND


def read_rows(source: str, *, split: str = "train", text: TextForm = AS_FOUND) -> Iterator[Row]:
    """Every row of a source, in order; `split` applies to datasets only.

    Raises:
        DataError: the source cannot be found or read; see `locate` and `read_part`.
    """
    for part in locate(source, text):
        yield from read_part(part, split=split)


def locate(source: str, text: TextForm = AS_FOUND) -> tuple[Part, ...]:
    """The parts of a source: one, or for a folder one for each file in it, sorted by name.

    A .txt file in a folder is read only if the folder has no other readable file: beside data it is a note about them.

    Raises:
        DataError: the source does not exist, or has a format that prefine does not read.
    """
    if source.startswith("hf:"):
        return (Part(source, "hub"),)
    if source.startswith(MEMORY):
        if not is_held(source):
            raise DataError(
                f"{source}: these rows were given from Python, and this process does not hold them",
                "Pass the same rows again, or write them into a file.",
            )
        return (Part(source, "memory"),)
    path = Path(expanded(source))
    try:
        if path.is_dir():
            return _folder_parts(path, text)
        if path.is_file():
            part = _file_part(path, text)
            if part is None and path.suffix.lower() in _DATABASES:
                require_feedback(path)
                return (Part(str(path), "feedback", path),)
            if part is None:
                raise DataError(
                    f"{source}: its extension {path.suffix!r} is not one that prefine reads", f"Use {KNOWN_FILES}."
                )
            return (part,)
        if path.exists():
            raise DataError(f"{source}: is not a regular file", "Write its content to a file first.")
    except OSError as error:  # no permission; a name too long
        found = error.strerror or error
        raise DataError(
            f"{printable(source)}: cannot be opened: {found}", "Check the name and its permissions."
        ) from error
    remedy = "Check the path; it is taken from the working directory."
    if _HUB_ID.fullmatch(source) and _form_of(path)[0] is None:
        told = mistyped("datasets", source.partition("#")[0])
        if told is None:
            return (Part(source, "hub"),)
        remedy = told
    elif near := similar_path(source):
        remedy = f"Did you mean {near}?"
    raise MissingDataError(f"{printable(source)}: no such file or folder", printable(remedy))


def _folder_parts(folder: Path, text: TextForm) -> tuple[Part, ...]:
    if is_saved_dataset(folder):
        return (Part(str(folder), "saved", folder),)
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith((".", "_")))
    parts = tuple(part for path in files if (part := _file_part(path, text) or _feedback_part(path)) is not None)
    if not parts:
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
        raise DataError(f"{folder}: has no file that prefine reads; it holds {found}", f"It reads {KNOWN_FILES}.")
    return tuple(part for part in parts if part.form != "txt") or parts


def _file_part(path: Path, text: TextForm) -> Part | None:
    form, compressed = _form_of(path)
    return None if form is None else Part(str(path), form, path, compressed, text)


def _feedback_part(path: Path) -> Part | None:
    is_ours = path.suffix.lower() in _DATABASES and is_feedback(path)
    return Part(str(path), "feedback", path) if is_ours else None


def _form_of(path: Path) -> tuple[_FileForm | None, bool]:
    compressed = path.suffix.lower() == ".gz"
    return _FORMS.get(Path(path.stem if compressed else path.name).suffix.lower()), compressed


def read_part(
    part: Part, *, split: str = "train", note: Note = lambda said: None, wanted: Wanted | None = None
) -> Iterator[Row]:
    """Every row of one part, in order. A part without rows is an error.

    Args:
        part: of `locate`.
        split: of a dataset.
        note: called with what was detected in a text file, its encoding or delimiter, as the rest of a sentence.
        wanted: the kind of record to make from feedback; other parts show it by their columns.

    Raises:
        DataError: empty, binary, damaged or unreachable.
    """
    number = 0
    for row in _rows(part, split, note, wanted):
        number += 1
        yield row
    if number == 0:
        raise DataError(f"{part.name}: has no rows", "Give a file with at least one row.")


def _rows(part: Part, split: str, note: Note, wanted: Wanted | None) -> Iterator[Row]:
    if part.form == "memory":
        yield from read_memory(part.name)
    elif part.form == "hub" or part.path is None:
        yield from read_hub_dataset(part.name.removeprefix("hf:"), split=split, source=part.name)
    elif part.form == "feedback":
        yield from read_feedback(part.path, wanted, file=part.name)
    elif part.form == "saved":
        yield from read_saved_dataset(part.path, split=split)
    else:
        yield from _file_rows(part, part.path, note)


def _file_rows(part: Part, path: Path, note: Note) -> Iterator[Row]:
    line = 0
    try:
        with io.BufferedReader(cast(io.RawIOBase, path.open("rb", buffering=0)), _BUFFER_BYTES) as raw:
            if raw.peek(1) == b"":
                raise DataError(f"{part.name}: is empty", "Give a file with at least one row.")
            if part.form == "parquet":
                yield from read_parquet(path, compressed=part.compressed, file=part.name)
                return
            with _unpacked(raw, part.compressed) as stream:
                for row in _text_rows(stream, part, note):
                    line = row.line
                    yield row
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{part.name}: is damaged or truncated gzip data{_after(line)}: {error}",
            "Compress the file again, or drop .gz from its name.",
        ) from error
    except OSError as error:
        raise DataError(
            f"{part.name}: cannot be read{_after(line)}: {error.strerror or error}",
            "Check its permissions and the disk.",
        ) from error


def _text_rows(stream: Buffered, part: Part, note: Note) -> Iterator[Row]:
    _refuse_other_files(stream, part)
    text = _as_utf8(stream, part, note)
    _refuse_binary(text, part)
    if part.form in ("csv", "tsv"):
        usual = "\t" if part.form == "tsv" else ","
        return read_csv(text, part.name, note, delimiter=part.text.delimiter, usual=usual)
    reader = {"jsonl": read_jsonl, "json": read_json_array, "txt": read_lines}[part.form]
    return reader(cast(BinaryIO, text), part.name)


@contextmanager
def text_of(part: Part) -> Iterator[Buffered]:
    """A text file as it is, but unpacked and as UTF-8: its lines are those that rows name."""
    path = cast(Path, part.path)
    with (
        io.BufferedReader(cast(io.RawIOBase, path.open("rb", buffering=0)), _BUFFER_BYTES) as raw,
        _unpacked(raw, part.compressed) as stream,
    ):
        yield _as_utf8(stream, part, lambda said: None)


def _as_utf8(stream: Buffered, part: Part, note: Note) -> Buffered:
    may_be_western = part.form in ("csv", "tsv", "txt")
    return utf8_stream(stream, part.text.encoding, note, may_be_western=may_be_western)


def _after(line: int) -> str:
    return f" after line {line}" if line else ""


class _Unzipped(io.RawIOBase):
    """The content of gzip data. Content before a damaged place is returned before the error is raised."""

    def __init__(self, raw: Buffered) -> None:
        self._gzip = gzip.GzipFile(fileobj=raw)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        # Not GzipFile.readinto, which loses its data if the file is truncated.
        into = memoryview(buffer)
        data = self._gzip.read1(len(into))
        into[: len(data)] = data
        return len(data)


def _unpacked(raw: Buffered, compressed: bool) -> Buffered:
    if not compressed:
        return raw
    # GzipFile's readline is Python code; with a buffer around it lines are read twice as fast.
    return io.BufferedReader(_Unzipped(raw), _BUFFER_BYTES)


def _refuse_other_files(stream: Buffered, part: Part) -> None:
    start = stream.peek(_PEEKED_BYTES)[:_PEEKED_BYTES]
    if not start:
        raise DataError(f"{part.name}: is empty", "Give a file with at least one row.")
    for telltale, (what, remedy) in _TELLTALE_STARTS.items():
        if start.startswith(telltale):
            raise DataError(f"{part.name}: {what}, not {part.form} text", remedy)


def _refuse_binary(text: Buffered, part: Part) -> None:
    start = text.peek(_PEEKED_BYTES)[:_PEEKED_BYTES]
    if b"\0" not in start:
        return
    remedy = f"prefine reads {KNOWN_FILES}."
    for offset, name in ((1, "utf-16-le"), (0, "utf-16-be")):
        if not start[offset::2].strip(b"\0"):  # every second byte is NUL, as in UTF-16 text of ASCII characters
            remedy = f"If it is UTF-16 text without a byte order mark, set data.encoding to {name}."
    raise DataError(f"{part.name}: is a binary file (it has NUL bytes), not {part.form} text", remedy)
