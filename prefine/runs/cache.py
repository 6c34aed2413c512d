"""The cache of converted models and reference log-probabilities.

Several processes and machines may share a cache. Each entry is a folder with a marker, written last, that lists its
files and their hashes; an entry without a valid marker is not used.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from prefine import __version__
from prefine.errors import CheckpointError, PrefineError
from prefine.json_reading import read_json_object
from prefine.runs.atomic import JSON, atomic_write, discard, remove, sha256_of_file, storage_errors, write_json

log = logging.getLogger("prefine")

MARKER = "prefine-entry.json"
# Names of entries by kind, which is also the folder. A digest identifies what an entry was made from.
_NAMES = {
    "models": re.compile(r"smollm2-135m-[0-9a-f]{12}"),
    "reference": re.compile(r"[0-9a-f]{40}"),
}
# Earlier releases kept reference log-probabilities as files, without a marker.
_OLD_FILE = re.compile(r"[0-9a-f]{40}\.safetensors")
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.\d+-[0-9a-f]{8}\.tmp")
_SECONDS_BEFORE_SAYING_SO = 2.0
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)
_REMEDY = "Set PREFINE_CACHE to a folder that you can write to, on a disk with free space."


def cache_directory() -> Path:
    """The cache's folder; its writers create it.

    PREFINE_CACHE if set, else `prefine` in XDG_CACHE_HOME, in LOCALAPPDATA (Windows), in ~/Library/Caches (macOS) or
    in ~/.cache.

    Raises:
        PrefineError: the user has no home directory and no variable names another place.
    """
    try:
        if chosen := os.environ.get("PREFINE_CACHE"):
            # Made absolute, so that a later change of directory does not move the cache.
            return Path(chosen).expanduser().absolute()
        shared = Path(os.environ.get("XDG_CACHE_HOME", "")).expanduser()
        # The XDG specification says to ignore relative paths.
        return (shared if shared.is_absolute() else _system_caches()) / "prefine"
    except RuntimeError as error:
        raise PrefineError(
            f"no place for the cache is known: {error}", "Set PREFINE_CACHE to a folder that you can write to."
        ) from error


def _system_caches() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")


def cache_entry(kind: str, name: str, make: Callable[[Path], None]) -> tuple[Path, bool]:
    """The folder of a verified cache entry, and whether it existed already.

    An entry counts only if its marker lists every file with its size and SHA-256, as `whole` checks. A missing or
    damaged entry is made (again) by one of all processes that share the cache; the others wait. Reading a valid entry
    writes nothing, so the cache may be read-only.

    Args:
        kind: the folder in the cache, "models" or "reference".
        name: with a hexadecimal digest of everything that the content depends on; see _NAMES.
        make: fills the given empty folder; the result must not depend on the process.

    Raises:
        CheckpointError: the entry must be made and the cache cannot be written.
    """
    if not _is_name(kind, name):
        raise ValueError(f"no name for a cache entry: {kind}/{name}")
    path = cache_directory() / kind / name
    if whole(path):
        return path, True
    try:
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(path):
                if whole(path):  # another process has made it
                    return path, True
                _make(path, make)
    except CheckpointError as error:
        if whole(path):  # without locks another process may have been faster
            return path, True
        raise CheckpointError(error.problem, _REMEDY) from error
    return path, False


def whole(path: Path) -> bool:
    """Whether a cache entry is valid: exactly the marker's files, each with its size and SHA-256."""
    try:
        listed = read_json_object(path / MARKER)["files"]
        return bool(listed) and listed == _listing(path)
    except (OSError, ValueError, KeyError, TypeError):
        return False


@dataclass(frozen=True)
class CacheItem:
    """An entry of the cache.

    Attributes:
        state: "whole"; "damaged": made again at the next use; or "left over" from a killed process.
    """

    path: Path
    kind: str
    state: str
    size_bytes: int


def cache_items() -> list[CacheItem]:
    """prefine's entries in the cache, by kind and name; other files are not listed."""
    found = []
    for kind, path in _entries():
        state = "left over" if path.name.startswith(".") else "whole" if whole(path) else "damaged"
        found.append(CacheItem(path, kind, state, bytes_below(path)))
    return found


def cache_size() -> int:
    """The bytes of prefine's entries in the cache, without reading them."""
    return sum(bytes_below(path) for _, path in _entries())


def _entries() -> Iterator[tuple[str, Path]]:
    for kind in _NAMES:
        folder = cache_directory() / kind
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            if _entry_of(path) is not None:
                yield kind, path


def remove_cache_item(item: CacheItem) -> bool:
    """Remove an entry from the cache; returns False and keeps it while a process is making it.

    Without locks it is unknown whether an unfinished entry is in use: it is kept.

    Raises:
        CheckpointError: the cache cannot be written.
    """
    entry = _entry_of(item.path)
    if entry is None:
        raise ValueError(f"not prefine's: {item.path}")
    unfinished = item.path.name.startswith(".")
    lock = _lock_of(entry)
    with storage_errors(item.path):
        try:
            if not _acquired(lock, 0) and unfinished:
                return False
            (remove if unfinished else discard)(item.path)
        except Timeout:
            return False
        finally:
            lock.release()
    return True


def _make(path: Path, make: Callable[[Path], None]) -> None:
    """Called with the entry's lock, so anything under its name is from a process that has ended."""
    _sweep(path.parent, path.name)
    if path.exists() or path.is_symlink():
        log.info("%s in the cache is damaged or of an older release: it is made again", path.name)
        discard(path)
    with atomic_write(path) as temporary:
        temporary.mkdir()
        make(temporary)
        write_json(temporary / MARKER, {"prefine": __version__, "files": _listing(temporary)})


def _listing(folder: Path) -> dict[str, JSON]:
    """Size and SHA-256 of every file below `folder` except the marker and hidden files (of desktops)."""
    return {
        file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": sha256_of_file(file)}
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != MARKER and not file.name.startswith(".")
    }


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Context with the lock of an entry; waits as long as another process needs to make it.

    The lock's file stays: removing it would let two processes lock two files of one name. On a file system without
    locks there is none; then two processes may make the same entry, and the second uses the first one's.
    """
    lock = _lock_of(path)
    try:
        _acquired(lock, _SECONDS_BEFORE_SAYING_SO)
    except Timeout:
        log.info("waiting for another process, which is making %s", path)
        _acquired(lock, -1)
    try:
        yield
    finally:
        lock.release()


def _acquired(lock: BaseFileLock, timeout: float) -> bool:
    """Take a lock; False on a file system without locks. Raises Timeout."""
    try:
        lock.acquire(timeout=timeout)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True


def _lock_of(entry: Path) -> BaseFileLock:
    # Without flock, filelock uses a file's existence, which a killed process would leave locked.
    return FileLock(_lock_file(entry), fallback_to_soft=False)


def _lock_file(entry: Path) -> Path:
    return entry.with_name(f".{entry.name}.lock")


def _entry_of(path: Path) -> Path | None:
    """The entry of which `path` is the folder or an unfinished copy; None if it is not prefine's.

    A name is not enough, since PREFINE_CACHE may be any folder: an entry has a marker.
    """
    kind = path.parent.name
    if unfinished := _TEMPORARY.fullmatch(path.name):
        return path.with_name(unfinished["name"]) if _is_name(kind, unfinished["name"]) else None
    if _is_name(kind, path.name):
        return path if os.path.lexists(path / MARKER) else None
    return path if kind == "reference" and _OLD_FILE.fullmatch(path.name) else None


def _is_name(kind: str, name: str) -> bool:
    return kind in _NAMES and _NAMES[kind].fullmatch(name) is not None


def _sweep(folder: Path, locked: str) -> None:
    """Remove unfinished copies of killed processes in `folder`: of the entry `locked`, and of all that are not in use.

    Only the lock shows use; a process number does not, as other machines and containers may share the cache.
    """
    for path in list(folder.iterdir()):
        unfinished = _TEMPORARY.fullmatch(path.name)
        if unfinished is None or not _is_name(folder.name, unfinished["name"]):
            continue
        if unfinished["name"] == locked:
            remove(path)
        else:
            remove_cache_item(CacheItem(path, folder.name, "left over", 0))


def bytes_below(path: Path) -> int:
    """Bytes of the files at or below `path`, links left out; those that another process removes meanwhile count 0."""
    inside = [Path(folder, name) for folder, _, names in os.walk(path) for name in names]
    total = 0
    for file in [path, *inside]:
        with suppress(OSError):
            found = file.lstat()
            total += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return total
