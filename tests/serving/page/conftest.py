"""The chat page in a browser (tests/conftest.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prefine.feedback.store import FeedbackSettings
from tests.serving.page.page_server import PageServer, page_server

WIDE, PHONE = (1280, 800), (390, 844)
WAIT_MS = 20_000

Open = Callable[..., Any]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageServer]:
    """A server that stores texts."""
    with page_server(tmp_path_factory.mktemp("page") / "feedback.db", FeedbackSettings(store_texts=True)) as served:
        yield served


@pytest.fixture
def server(shared: PageServer) -> PageServer:
    """The same, with nothing asked yet."""
    shared.asked.clear()
    shared.left = 0
    return shared


@pytest.fixture
def open_page(browser: Any) -> Iterator[Open]:
    """Opens the chat page of an address, in a browser that knows nothing yet. No error may be left on its console."""
    opened: list[tuple[Any, list[str]]] = []

    def open_at(address: str, size: tuple[int, int] = WIDE, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **options)
        context.set_default_timeout(WAIT_MS)
        page, problems = context.new_page(), []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda said: problems.append(said.text) if "Content Security Policy" in said.text else None)
        opened.append((context, problems))
        page.goto(address)
        return page

    yield open_at
    for context, problems in opened:
        context.close()
        assert problems == []


@pytest.fixture
def page(open_page: Open, server: PageServer) -> Any:
    """The page on a wide screen, its models listed."""
    found = open_page(server.address)
    found.wait_for_selector("#model option", state="attached")
    return found


def database_of(served: PageServer) -> Path:
    """Where a server's feedback is."""
    assert served.store is not None
    return served.store.path
