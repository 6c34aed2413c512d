"""Drafts in a real browser: what was begun on an item comes back, to its annotator alone."""

from __future__ import annotations

from pathlib import Path

from prefine.annotation.records import ProjectSettings
from tests.annotation.page.conftest import Open, at_task
from tests.annotation.page.page_project import annotation_server, item

ITEMS = [item(["First answer, one.", "Second answer, two."], f"Question {n}?") for n in range(3)]


def test_what_was_begun_outlives_a_pause_and_an_undo(tmp_path: Path, open_page: Open) -> None:
    with annotation_server(tmp_path / "project.db", ProjectSettings(order="given"), ITEMS[:3]) as server:
        page = open_page(server.link("anna"))
        at_task(page, 1).fill("#note", "of the first")
        page.click("#pause")
        page.get_by_role("button", name="Go on").click()
        assert at_task(page, 1).input_value("#note") == "of the first"
        page.keyboard.press("Escape")
        page.get_by_role("button", name="A is better").click()
        at_task(page, 2).fill("#note", "of the second")
        page.click("#undo")
        page.wait_for_selector("body[data-ready]:has(.before)")
        assert at_task(page, 1).input_value("#note") == "of the first"
        page.get_by_role("button", name="B is better").click()
        assert at_task(page, 2).input_value("#note") == "of the second"
        page.get_by_role("button", name="A is better").click()
        assert at_task(page, 3).input_value("#note") == ""
        assert [vote.ballot.note for vote in server.project.votes()] == ["of the first", "of the second"]


def test_drafts_are_their_annotators_alone(tmp_path: Path, open_page: Open) -> None:
    with annotation_server(tmp_path / "project.db", ProjectSettings(order="given"), ITEMS[:1]) as server:
        page = open_page(server.link("anna"))
        at_task(page, 1).fill("#note", "anna's")
        server.project.pause("anna", True)  # gives the item back
        page.context.clear_cookies()
        page.goto("about:blank")
        page.goto(server.link("ben"))
        assert at_task(page, 1).input_value("#note") == ""
