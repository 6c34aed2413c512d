"""Whatever a model, an annotator or the project's owner writes stays text: no script of it runs, nothing is loaded."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from prefine.annotation.records import Kind, ProjectSettings, PromptTurn
from tests.annotation.page.conftest import Open, at_task
from tests.annotation.page.page_project import annotation_server, item
from tests.web.payloads import ALLOWED, PAYLOADS

FOLDERS = [files(package) / "static" for package in ("prefine.annotation.page", "prefine.web")]
OTHER_KINDS = ("rank", "thumb", "rewrite")
TEMPLATES = files("prefine.annotation.page") / "templates"
EVERYTHING = "\n\n".join(PAYLOADS) + '\n\n" onfocus="window.hacked=1" autofocus x="\n</title></textarea></noscript>'


def scripts_and_elements(page: Any) -> tuple[Any, int, set[str]]:
    """What a payload would have set, the number of scripts, the elements within texts."""
    return (
        page.evaluate("window.hacked ?? null"),
        page.evaluate("document.scripts.length"),
        set(page.evaluate("[...document.querySelectorAll('.text *')].map((e) => e.localName)")),
    )


@pytest.mark.parametrize("kind", ["compare", *(pytest.param(kind, marks=pytest.mark.slow) for kind in OTHER_KINDS)])
def test_no_payload_runs_or_becomes_an_element(tmp_path: Path, open_page: Open, kind: Kind) -> None:
    """As prompts, answers, title, instructions, name of the annotator, note and edited text."""
    count = {"compare": 2, "rank": 4}.get(kind, 1)
    turns = (PromptTurn("system", EVERYTHING), PromptTurn("assistant", EVERYTHING), PromptTurn("user", EVERYTHING))
    texts = [f"{EVERYTHING}\n{n}" for n in range(count)]
    settings = ProjectSettings(PAYLOADS[1][:200], EVERYTHING, kind)
    name = "<img src=x onerror=window.hacked=1>"
    with annotation_server(tmp_path / "project.db", settings, [item(texts, turns)]) as server:
        page = open_page(server.address)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.fill("#name", name)
        page.get_by_role("button", name="Begin").click()
        page.wait_for_selector("#instructions[open]")
        page.keyboard.press("Escape")
        at_task(page, 1)
        page.fill("#note", EVERYTHING)
        if kind == "compare":
            page.click("#differences")
            page.wait_for_selector("mark")
            assert scripts_and_elements(page)[0] is None
            page.click("#differences")
        if kind == "rewrite":
            page.fill("#rewritten", EVERYTHING)
        else:
            page.locator(".edit").first.click()
            page.locator(".editor textarea").fill(EVERYTHING)
            page.get_by_role("button", name="Keep the edit").click()
        page.reload()
        at_task(page, 1)
        hacked, scripts, elements = scripts_and_elements(page)
        assert hacked is None and scripts == 2 and elements <= ALLOWED
        assert page.title() == PAYLOADS[1] and page.locator("h1").inner_text() == PAYLOADS[1]
        sources = page.evaluate("[...document.querySelectorAll('main img, main iframe, main [onload], base')].length")
        assert sources == 0
        page.click("#open-keys")
        page.get_by_text(f"You are {name}.").wait_for()
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Skip").click()
        page.wait_for_selector("body[data-ready] #again")
        assert page.locator(".who").inner_text() == name and scripts_and_elements(page)[0] is None
        (vote,) = server.project.votes()
        assert vote.ballot.note == EVERYTHING.replace("\u0000", "\ufffd") or vote.ballot.note == EVERYTHING
        assert {url.split("/")[2] for url in asked} == {server.address.split("/")[2]}


def test_a_script_that_did_come_into_the_page_would_not_run(tmp_path: Path, open_page: Open) -> None:
    with annotation_server(tmp_path / "project.db", ProjectSettings(kind="thumb"), [item(["text"])]) as server:
        context = open_page("about:blank").context
        page = context.new_page()
        page.goto(server.address)
        broken = page.evaluate(
            """async () => {
            const broken = [];
            document.addEventListener("securitypolicyviolation", (event) => broken.push(event.effectiveDirective));
            const script = document.createElement("script");
            script.textContent = "window.hacked = 1";
            const handler = document.createElement("i");
            handler.setAttribute("onclick", "window.hacked = 1");
            const style = document.createElement("style");
            style.textContent = "body { color: red }";
            document.body.append(script, handler, style);
            handler.click();
            await fetch(`http://localhost:${location.port}/`).catch(() => {});
            await new Promise((resolve) => setTimeout(resolve, 100));
            return broken.sort();
            }"""
        )
        assert page.evaluate("window.hacked ?? null") is None
    assert broken == ["connect-src", "script-src-attr", "script-src-elem", "style-src-elem"]


def sources() -> dict[str, str]:
    return {entry.name: entry.read_text(encoding="utf-8") for folder in FOLDERS for entry in folder.iterdir()}


def test_scripts_never_parse_text_as_html_or_code() -> None:
    banned = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|new Function|srcdoc|setHTML"
    for name, text in sources().items():
        assert not (name.endswith(".js") and re.search(banned, text)), name
        assert len(text.splitlines()) <= 410, name
        for module in re.findall(r'from "\./([^"]+)"', text):
            assert module in sources(), (name, module)
        assert set(re.findall(r"https?://[^\s\"'<)]+", text)) <= {"http://www.w3.org/2000/svg"}, name


def test_templates_have_nothing_inline_and_escape_everything() -> None:
    for entry in TEMPLATES.iterdir():
        text = entry.read_text(encoding="utf-8")
        assert not re.search(r"<style|style=|\son\w+=|<script(?![^>]*src=)|\|\s*safe|autoescape|https?://", text), (
            entry.name
        )
        for path in re.findall(r'(?:src|href)="/page/([^"{]+)"', text):
            assert path in sources(), (entry.name, path)
