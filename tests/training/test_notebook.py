"""In a notebook a run has one output, which is updated; it needs IPython and no widgets."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from prefine.training.notebook import NotebookDisplay, in_notebook

ROW = {"loss": 0.5, "tokens_per_s": 100.0, "peak_memory_gb": 0.1}


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, str]]]:
    """What is displayed: a new output, or an update of it."""
    found: list[tuple[str, dict[str, str]]] = []

    class Handle:
        def update(self, content: dict[str, str], raw: bool) -> None:
            assert raw
            found.append(("update", content))

    def display(content: dict[str, str], raw: bool, display_id: bool) -> Handle:
        assert raw and display_id
        found.append(("new", content))
        return Handle()

    ipython, module = ModuleType("IPython"), ModuleType("IPython.display")
    ipython.get_ipython = lambda: SimpleNamespace(kernel=object())  # type: ignore[attr-defined]
    module.display = display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    return found


def test_a_notebook_is_known_by_its_kernel(shown: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert in_notebook()
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", SimpleNamespace, raising=False)
    assert not in_notebook(), "IPython in a terminal"
    monkeypatch.delitem(sys.modules, "IPython")
    assert not in_notebook()


def test_one_output_shows_lines_and_a_bar(shown: list[tuple[str, dict[str, str]]]) -> None:
    display = NotebookDisplay(clock=lambda: 0.0)
    display.say("model <b>T</b>")
    with display.progress(4, 0):
        display.step(1, ROW)  # too soon after the last update
        assert len(shown) == 1
        display.step(4, ROW)
        _, content = shown[-1]
        assert '<progress value="4" max="4">' in content["text/html"] and "loss 0.5000" in content["text/html"]
        assert "training 4/4  loss 0.5000" in content["text/plain"]
    assert [kind for kind, _ in shown] == ["new", *["update"] * (len(shown) - 1)]
    assert "&lt;b&gt;T&lt;/b&gt;" in content["text/html"] and "<b>" not in content["text/html"]


def test_other_processes_show_nothing(shown: list[tuple[str, dict[str, str]]]) -> None:
    display = NotebookDisplay()
    display.leave_to_main_process()
    display.say("one")
    with display.progress(1, 0):
        display.step(1, ROW)
    assert shown == []
