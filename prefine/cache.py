"""Where prefine keeps what can be made again: converted models, reference log-probabilities, tokenized data."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from prefine.errors import PrefineError


def cache_directory() -> Path:
    """The folder for everything that can be made again; it is only named here, whoever writes creates it.

    PREFINE_CACHE if set, else `prefine` in XDG_CACHE_HOME, in LOCALAPPDATA (Windows), in ~/Library/Caches (macOS) or
    in ~/.cache.

    Raises:
        PrefineError: the user has no home directory and no variable names another place.
    """
    try:
        if chosen := os.environ.get("PREFINE_CACHE"):
            # Absolute at once, so that a later change of directory does not move the cache.
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
