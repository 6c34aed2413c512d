"""Tags of runs: words in tags.json in a run's folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from prefine.errors import CheckpointError, RecipeError
from prefine.json_reading import JsonError, read_json
from prefine.runs.atomic import write_json

_NAME = "tags.json"
_TAG = re.compile(r"[\w][\w.:+-]{0,63}")


def tags_of(run: Path) -> list[str]:
    """A run's tags, sorted; none where the file is missing or damaged."""
    try:
        values = read_json(run / _NAME)
    except (OSError, JsonError):
        return []
    return sorted({each for each in values if isinstance(each, str)}) if isinstance(values, list) else []


def change_tags(run: Path, add: Sequence[str], remove: Sequence[str]) -> list[str]:
    """Add and remove tags of a run; returns all that it has then.

    Raises:
        RecipeError: a word cannot be a tag, or one to remove is not there.
        CheckpointError: the folder holds no run, or cannot be written.
    """
    if not (run / "manifest.json").is_file():
        raise CheckpointError(f"{run} holds no run", "Name a run's folder, for example runs/dpo.")
    before = tags_of(run)
    for tag in add:
        if not _TAG.fullmatch(tag):
            raise RecipeError(f"{tag!r:.80} cannot be a tag", "Write one word of letters, digits and _ . : + -.")
    for tag in remove:
        if tag not in before:
            known = ", ".join(before) or "none"
            raise RecipeError(f"{run} has no tag {tag!r:.60}", f"Its tags: {known}.", field="--remove")
    tags = sorted({*before, *add} - {*remove})
    if tags != before:
        write_json(run / _NAME, tags)
    return tags
