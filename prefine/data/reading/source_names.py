"""Names of sources as users write them: one or several, with `sample:NAME` for the data that come with prefine."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from prefine.errors import DataError
from prefine.recipe.sections import Sources

SAMPLE = "sample:"


def listed_sources(sources: Sources) -> list[str]:
    """One source or several, as a list."""
    return [sources] if isinstance(sources, str) else list(sources)


def source_names(sources: Sources) -> list[str]:
    """Sources as a list, with `sample:NAME` replaced by the path of a dataset that comes with prefine.

    Raises:
        DataError: no sample of that name.
    """
    return [_sample_path(name) if name.startswith(SAMPLE) else name for name in listed_sources(sources)]


def _sample_path(name: str) -> str:
    root = Path(str(files("prefine"))) / "samples"
    path = root / f"{name.removeprefix(SAMPLE)}.jsonl"
    if not path.is_file():
        known = sorted(str(each.relative_to(root).with_suffix("")) for each in root.rglob("*.jsonl"))
        raise DataError(f"{name}: no such sample", f"The samples are {', '.join(SAMPLE + each for each in known)}.")
    return str(path)
