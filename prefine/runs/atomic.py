"""Atomic writing: a kill, a full disk or a power cut never leaves half a file.

`atomic_write` is the only function in prefine that puts a finished file or directory in its place.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

import psutil

from prefine.errors import CheckpointError, PrefineError

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"

_STORAGE_REASONS = {
    errno.ENOSPC: ("the disk is full", "Free some space there, or write to another disk"),
    errno.EDQUOT: ("your disk quota is used up", "Free some space there, or write to another disk"),
    errno.EFBIG: (
        "the file would be larger than its file system or a process limit allows",
        "Raise the limit (ulimit -f), or write to another disk",
    ),
    errno.EROFS: ("the file system is read-only", "Write to another place"),
    errno.EACCES: ("permission is denied", "Write to a folder of your own, or change its permissions"),
    errno.EPERM: ("permission is denied", "Write to a folder of your own, or change its permissions"),
    errno.EIO: ("the disk reported an error", "Check the disk, or write to another one"),
    errno.ENOENT: ("its folder does not exist", "Create it, or put it back"),
    errno.ENOTDIR: ("a file is in the place of a folder", "Choose another name, or move that file away"),
    errno.EISDIR: ("a folder is in the place of a file", "Choose another name, or move that folder away"),
    errno.ENAMETOOLONG: ("the name is too long", "Choose a shorter name"),
    errno.ELOOP: ("its symbolic links form a loop", "Choose another name, or correct the links"),
    errno.EEXIST: ("a file is in the place of a folder", "Choose another name, or move that file away"),
}
# The file in the error shows whether these concern a path.
_NAME_ERRORS = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EEXIST}
_OS_ERROR_IN_TEXT = re.compile(r"\(os error (\d+)\)|\[Errno (\d+)\]")
_HIDDEN_NAME = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)-[0-9a-f]{8}\.tmp")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Create a file or directory at `path` completely or not at all, durably.

    Yields a temporary path beside `path`: write a file there, or make a directory and fill it. At a clean exit
    everything in it is flushed to the disk, it takes the name `path` in one rename (replacing an existing file, never a
    directory), and the folder is flushed. After an exception it is removed and nothing else changes.

    Raises:
        CheckpointError: `path` is an existing directory, its folder does not exist, or the disk is full,
            read-only or not writable.
    """
    temporary = _hidden_name(path)
    if not path.parent.is_dir():
        raise CheckpointError(f"{path} could not be written: there is no folder {path.parent}", "Create it first.")
    try:
        with storage_errors(path):
            _refuse_directory(path)
            yield temporary
            if not path.parent.is_dir():
                raise CheckpointError(
                    f"{path} could not be written: {path.parent} was deleted or renamed in the meantime", "Restore it."
                )
            if not temporary.exists():
                raise RuntimeError(f"nothing was written for {path}")
            put_in_place(temporary, path)
    except BaseException:
        remove(temporary)
        raise


def put_in_place(finished: Path, path: Path) -> None:
    """Rename a finished file or directory beside `path` to `path`, durably; see `atomic_write`.

    Raises:
        CheckpointError: `path` is an existing directory.
        OSError: the disk is full, read-only or not writable.
    """
    _refuse_directory(path)
    _fsync_tree(finished)
    finished.replace(path)
    _flush_to_disk(path.parent)


def require_writable(path: Path, *, folder_is_made: bool = False) -> None:
    """Check before any work that a file can be written at `path`, without changing anything there.

    Args:
        path: of the file, which may exist.
        folder_is_made: whether its writer creates the folder if there is none.

    Raises:
        CheckpointError: `path` is a directory or a device, its folder does not exist, or the disk is full, read-only
            or not writable.
    """
    with storage_errors(path):
        if "\0" in str(path):
            raise CheckpointError(f"{str(path)!r} could not be written: a name cannot hold NUL", "Choose another name.")
        _refuse_directory(path)
        if path.exists() and not path.is_file():
            raise CheckpointError(f"{path} could not be written: it is not a regular file", "Choose another name.")
        if path.exists():
            path.open("ab").close()
        folder = path.parent
        if folder_is_made:
            folder = next(each for each in path.parents if each.exists())
        if not folder.exists():
            raise CheckpointError(f"{path} could not be written: there is no folder {folder}", "Create it first.")
        probe = _hidden_name(folder / path.name)
        try:
            probe.touch()
        finally:
            remove(probe)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text through `atomic_write`."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: JSON) -> None:
    """Write indented JSON in the order given, through `atomic_write`. NaN and infinities become null."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(json_bytes(value, indent=2))


def discard(path: Path) -> None:
    """Delete a file or directory; a kill never leaves a part of it under its name."""
    hidden = _hidden_name(path)
    with storage_errors(path):
        path.rename(hidden)
    remove(hidden)


def remove(path: Path) -> None:
    """Delete a file or directory as far as possible, without errors; for leftovers that nothing reads."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def sweep_temporaries(directory: Path, of: str | None = None, *, ours: bool = True) -> None:
    """Remove hidden leftovers of killed writers in `directory`; those of a living process are kept.

    Args:
        of: only what was written for this name, in a folder that is not prefine's own; None: for any name.
        ours: also those with this process's number, which a killed writer can have had, too: in a container every run
            may be process 1. False where another thread of this process may be writing there.
    """
    if not directory.is_dir():
        return
    for entry in list(directory.iterdir()):
        name = _HIDDEN_NAME.fullmatch(entry.name)
        if name is None or of not in (None, name["name"]):
            continue
        writer = int(name["pid"])
        if (ours and writer == os.getpid()) or not psutil.pid_exists(writer):
            remove(entry)


def is_temporary(path: Path) -> bool:
    """Whether a path has a name of hidden files of `atomic_write` and `discard`."""
    return _HIDDEN_NAME.fullmatch(path.name) is not None


@contextmanager
def temporary_folder(name: str) -> Iterator[Path]:
    """A folder for files that are exchanged with another process, among the system's temporary ones.

    What a killed process left of the same name is removed first.
    """
    there = Path(tempfile.gettempdir())
    sweep_temporaries(there, name, ours=False)
    folder = _hidden_name(there / name)
    folder.mkdir(0o700)
    try:
        yield folder
    finally:
        remove(folder)


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Context that turns errors of a full, read-only or forbidden disk while writing `path` into CheckpointErrors.

    Rust writers (safetensors, tokenizers) and other processes give the system's error only as text, so the text is
    parsed, too. An error about a name (no such file, a folder instead of a file) that names another file is not
    changed: it comes from reading that file, not from writing `path`.
    """
    try:
        yield
    except PrefineError:
        raise
    except Exception as error:
        code, named = _system_error(error)
        reason = _STORAGE_REASONS.get(code)
        if reason is None or (code in _NAME_ERRORS and named is not None and not _concerns(named, path)):
            raise
        raise CheckpointError(f"{path} could not be written: {reason[0]}", f"{reason[1]}.") from error


def json_bytes(value: JSON, indent: int | None = None) -> bytes:
    """UTF-8 JSON, keys in the order given, ending in a newline. NaN and infinities become null."""
    text = json.dumps(_without_non_finite(value), ensure_ascii=False, allow_nan=False, indent=indent)
    # A lone surrogate (an undecodable byte of a command line, say) becomes its JSON escape.
    return text.encode("utf-8", "backslashreplace") + b"\n"


def sha256_of_file(path: Path) -> str:
    """The SHA-256 of a file's bytes in hexadecimal, read in small pieces. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _system_error(error: BaseException | None) -> tuple[int, str | None]:
    """The errno of the first system error in the chain of causes, 0 if there is none, and the file it names, if any."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            # open() by descriptor names a number
            return error.errno, os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else None
        if found := _OS_ERROR_IN_TEXT.search(str(error)):
            return int(found[1] or found[2]), None
        error = error.__cause__ or error.__context__
    return 0, None


def _concerns(named: str, path: Path) -> bool:
    """Whether an error that names a file comes from writing `path`.

    It does if the file is `path`, its temporary or partial file, one below these or a folder above. Once the folder of
    `path` is gone, every error about a name may come from that.
    """
    own, other = path.absolute(), Path(named).absolute()
    if own.is_relative_to(other):
        return True
    if other.is_relative_to(own.parent):
        beside = other.relative_to(own.parent).parts[0]
        if beside == own.name or beside.startswith((f"{own.name}.", f".{own.name}.")):
            return True
    return not own.parent.exists()


def _hidden_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def _refuse_directory(path: Path) -> None:
    if path.is_dir():
        raise CheckpointError(
            f"{path} could not be written: a folder of that name exists", "Move it away, or choose another name."
        )


def _fsync_tree(root: Path) -> None:
    """Flush every file and folder below `root`, folders after their contents."""
    # safetensors creates files that only their owner can read; a server of another user must be able to read a model,
    # so files get the mode that open() would give. The mask can only be read by setting it: the strict value protects a
    # file that another thread creates at this moment.
    mask = os.umask(0o077)
    os.umask(mask)
    for folder, _, names in os.walk(root, topdown=False):
        for file in (Path(folder, name) for name in names):
            _fsync_file(file, 0o666 & ~mask)
        _flush_to_disk(Path(folder))
    if not root.is_dir():
        _fsync_file(root, 0o666 & ~mask)


def _fsync_file(file: Path, mode: int) -> None:
    if not file.is_symlink():
        file.chmod(file.stat().st_mode | mode)
        _flush_to_disk(file)


def _flush_to_disk(path: Path) -> None:
    windows = os.name == "nt"
    if windows and path.is_dir():
        return  # Windows cannot open a folder
    handle = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _without_non_finite(value: JSON) -> JSON:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _without_non_finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_without_non_finite(item) for item in value]
    return value
