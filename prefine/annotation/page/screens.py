"""The screens as HTML, from templates. No model's name, run or other answer's secret is given to a template."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import jinja2

from prefine.annotation.project import Project
from prefine.annotation.records import ProjectSettings, Task
from prefine.web.sessions import WebSession

LETTERS = "ABCD"


class Screens:
    """Draws the screens of a project."""

    def __init__(self) -> None:
        folder = files("prefine.annotation.page") / "templates"
        self._environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(str(folder)),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    def task(self, settings: ProjectSettings, session: WebSession, task: Task) -> str:
        """The screen on which an item is judged."""
        answers = {answer.id: answer.text for answer in task.item.answers}
        return self._draw(
            f"{settings.kind}.html.j2",
            settings,
            session,
            turns=[{"role": turn.role, "content": turn.content} for turn in task.item.prompt],
            answers=[
                {"id": identifier, "letter": letter, "text": answers[identifier]}
                for identifier, letter in zip(task.shown, LETTERS, strict=False)
            ],
            token=task.token,
            done=task.done,
            total=max(task.total, task.done + 1),
        )

    def rest(self, project: Project, session: WebSession) -> str:
        """The screen of somebody who has no task now: all is done, or paused."""
        paused, votes = project.standing(session.name)
        return self._draw("rest.html.j2", project.settings, session, paused=paused, votes=votes)

    def entrance(self, settings: ProjectSettings, asks_password: bool) -> str:
        """The screen of somebody without a session."""
        return self._draw("entrance.html.j2", settings, None, asks_password=asks_password)

    def link(self, settings: ProjectSettings) -> str:
        """The screen that a personal link leads to, which gets a session for it."""
        return self._draw("link.html.j2", settings, None)

    def _draw(self, template: str, settings: ProjectSettings, session: WebSession | None, **values: Any) -> str:
        shown = {
            "title": settings.title,
            "instructions": settings.instructions,
            "kind": settings.kind,
            "criteria": settings.criteria,
            "allow_ties": settings.allow_ties,
            "allow_notes": settings.allow_notes,
            "name": session.name if session else "",
            "form_token": session.form_token if session else "",
        }
        return self._environment.get_template(template).render(shown | values)
