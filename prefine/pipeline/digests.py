"""Hashes of files, kept with size and time so that a large model is read once and not before every run."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prefine.json_reading import JsonError, read_json_object
from prefine.runs.atomic import sha256_of_file, write_json

# A file may change again within the clock's resolution and keep its time; a younger file is hashed again.
_SETTLED_S = 2.0


class KnownDigests:
    """SHA-256 of files by path, size and time of the last change.

    Args:
        path: where they are kept; a damaged file counts as empty.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._known: dict[str, Any] = read_json_object(path) if path.is_file() else {}
        except (OSError, JsonError):
            self._known = {}
        self._before = dict(self._known)

    def of_file(self, file: Path, of_content: Callable[[Path], str] | None = None) -> str:
        """The SHA-256 of a file in hexadecimal.

        Args:
            of_content: computes another hash, of what counts in the file; None for that of its bytes.

        Raises:
            OSError: it cannot be read.
        """
        found = file.stat()
        name, stamp = str(file.absolute()), [found.st_size, found.st_mtime_ns, found.st_ino]
        name = name if of_content is None else f"{of_content.__name__}: {name}"
        known = self._known.get(name)
        if isinstance(known, list) and len(known) == 2 and known[0] == stamp and isinstance(known[1], str):
            return known[1]
        digest = (of_content or sha256_of_file)(file)
        if time.time() - found.st_mtime > _SETTLED_S:
            self._known[name] = [stamp, digest]
        return digest

    def of_path(self, path: Path) -> str:
        """Of a file, or of all files below a folder by name and content, hidden ones left out."""
        if path.is_file():
            return self.of_file(path)
        return joined_digest({name: self.of_file(file) for name, file in files_below(path).items()})

    def save(self) -> None:
        """Keep what was found. The folder must exist."""
        if self._known != self._before:
            write_json(self._path, self._known)
            self._before = dict(self._known)


def files_below(folder: Path) -> dict[str, Path]:
    """The files of a folder by their path from it, sorted, hidden ones left out."""
    found = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    return {name: found[name] for name in sorted(found) if not any(part.startswith(".") for part in name.split("/"))}


def joined_digest(digests: Mapping[str, str]) -> str:
    """One hash of several, by name."""
    return hashlib.sha256("".join(f"{name}\0{digests[name]}\n" for name in sorted(digests)).encode()).hexdigest()
