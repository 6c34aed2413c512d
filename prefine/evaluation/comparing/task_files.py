"""The files that decide what a task of lm-eval-harness measures."""

from __future__ import annotations

from pathlib import Path

_SUFFIXES = (".yaml", ".yml")


def is_task_file(task: str) -> bool:
    """Whether a task is named by its YAML file."""
    return task.endswith(_SUFFIXES)


def task_files(task: str) -> list[Path]:
    """A task's YAML file and the code and further settings beside it, sorted; data files are left out.

    Raises:
        OSError: the folder cannot be read.
    """
    if not is_task_file(task):
        return []
    beside = sorted(each for each in Path(task).resolve().parent.iterdir() if each.suffix in (*_SUFFIXES, ".py"))
    return [each for each in beside if each.is_file()]
