"""The annotation page in a browser (tests/conftest.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

WIDE, PHONE = (1280, 800), (390, 844)
WAIT_MS = 20_000

Open = Callable[..., Any]


@pytest.fixture
def open_page(browser: Any) -> Iterator[Open]:
    """Opens an address in a browser that knows nothing yet. No error may be left on its console."""
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


def at_task(page: Any, number: int) -> Any:
    """Wait for the screen of an annotator's task with this number, ready for keys."""
    page.wait_for_selector(f"body[data-ready]:has(#progress:text('{number} of '))")
    return page
