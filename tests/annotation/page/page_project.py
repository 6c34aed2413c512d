"""A project with the real page before it, for a browser or a client."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from prefine.annotation.page.access import link_path
from prefine.annotation.page.app import create_app
from prefine.annotation.project import Project
from prefine.annotation.records import AnnotationItem, JudgedAnswer, ProjectSettings, PromptTurn
from prefine.web.policy import session_policy

MODELS = ("model-sft-secret", "model-dpo-secret", "model-ppo-secret", "model-rl-secret")


@dataclass
class AnnotationServer:
    """A running one.

    Attributes:
        address: of the page.
    """

    address: str
    project: Project

    def link(self, name: str) -> str:
        """A personal link, made anew."""
        return self.address + link_path(self.project.annotator(name))


def item(
    texts: Sequence[str], prompt: str | Sequence[PromptTurn] = "Where is Lyon?", category: str = ""
) -> AnnotationItem:
    """An item with one answer of each model; the model's name says which."""
    turns = (PromptTurn("user", prompt),) if isinstance(prompt, str) else tuple(prompt)
    answers = tuple(JudgedAnswer("", text, model, f"runs/{model}") for text, model in zip(texts, MODELS, strict=False))
    return AnnotationItem(0, "", turns, "", answers)


@contextlib.contextmanager
def annotation_server(
    path: Path,
    settings: ProjectSettings,
    items: Sequence[AnnotationItem],
    password: str | None = None,
    sessions_path: Path | None = None,
    port: int = 0,
) -> Iterator[AnnotationServer]:
    """Inside, the page of a project at `path` answers on a port of this machine; the project is made if need be."""
    with contextlib.ExitStack() as stack:
        if not path.exists():
            made = Project.create(path, settings)
            made.add_items(items)
            made.close()
        project = stack.enter_context(Project(path))
        listener = stack.enter_context(socket.create_server(("127.0.0.1", port)))
        app: Any = create_app(project, session_policy("127.0.0.1", password), password, sessions_path)
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started:
                threading.Event().wait(0.01)
            yield AnnotationServer(f"http://127.0.0.1:{listener.getsockname()[1]}", project)
        finally:
            server.should_exit = server.force_exit = True
            thread.join()
