"""Small projects, in few words."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from prefine.annotation.project import Project
from prefine.annotation.records import AnnotationItem, Ballot, JudgedAnswer, ProjectSettings, PromptTurn, Task


def item(number: int, category: str = "", models: tuple[str, ...] = ("sft", "dpo")) -> AnnotationItem:
    """An item whose answers say their model."""
    answers = tuple(JudgedAnswer("", f"{model} on {number}", model, f"runs/{model}") for model in models)
    return AnnotationItem(0, f"q{number}", (PromptTurn("user", f"Question {number}?"),), category, answers)


def project(
    path: Path, items: int = 3, *annotators: str, models: tuple[str, ...] = ("sft", "dpo"), **settings: Any
) -> Project:
    """A project with items and annotators, in the order of the import unless it is said otherwise."""
    made = Project.create(path, ProjectSettings(**{"order": "given", **settings}))
    made.add_items(item(number, models=models) for number in range(1, items + 1))
    for name in annotators or ("ann",):
        made.join(name)
    return made


def taken(found: Project, annotator: str = "ann") -> Task:
    """The next task, which there must be."""
    task = found.next_task(annotator)
    assert task is not None
    return task


def answer_of(task: Task, model: str) -> str:
    """The id of a model's answer."""
    return next(each.id for each in task.item.answers if each.model == model)


def ballot(choice: str, **others: Any) -> Ballot:
    """A ballot with a key of its own."""
    return Ballot(**{"key": secrets.token_hex(8), "choice": choice, **others})


def vote(found: Project, model: str, annotator: str = "ann", **others: Any) -> Task:
    """The annotator votes for a model's answer, or says tie, skip and so on."""
    task = taken(found, annotator)
    models = {each.model for each in task.item.answers}
    found.vote(annotator, task.token, ballot(answer_of(task, model) if model in models else model, **others))
    return task
