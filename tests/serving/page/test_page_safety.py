"""Whatever a model writes, is called, or a server says stays text: no script of it runs, nothing is loaded for it."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from tests.serving.page.conftest import Open
from tests.serving.page.page_server import PageServer, page_server
from tests.web.payloads import ALLOWED, PAYLOADS

FOLDERS = [files(package) / "static" for package in ("prefine.serving.page", "prefine.web")]


def test_no_payload_runs_or_becomes_an_element(open_page: Open, tmp_path: Path) -> None:
    """As the name of a model, as a question and as an answer; drawn while it comes, and again from what was kept."""
    with page_server(tmp_path / "feedback.db", pace_s=0) as served:
        served.models = tuple(PAYLOADS)
        page = open_page(served.address)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.wait_for_selector("#model option", state="attached")
        for number, payload in enumerate(PAYLOADS):
            page.select_option("#model", payload)
            page.fill("#question", f"say {payload}")
            page.keyboard.press("Enter")
            page.wait_for_selector(f".turn:nth-child({number + 1}) button[aria-label='Answer again']")
        page.reload()
        page.wait_for_selector(f".turn:nth-child({len(PAYLOADS)})")
        assert page.evaluate("window.hacked") is None
        assert set(page.evaluate("[...document.querySelectorAll('.text *')].map((e) => e.localName)")) <= ALLOWED
        assert page.evaluate("document.scripts.length") == 2
        assert {url.split("/")[2] for url in asked} == {served.address.split("/")[2]}
        for selector in (".model", "#model option"):
            shown = page.evaluate(f"[...document.querySelectorAll('{selector}')].map((e) => e.textContent)")
            assert shown == PAYLOADS


def test_text_of_errors_stays_text(open_page: Open, server: PageServer) -> None:
    page = open_page(server.address)
    page.wait_for_selector("#model option", state="attached")
    payload = PAYLOADS[1]
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=400, json={"error": {"message": payload}}))
    page.fill("#question", payload)
    page.keyboard.press("Enter")
    page.wait_for_selector(".problem")
    assert page.locator(".problem").inner_text() == payload
    assert page.evaluate("window.hacked") is None and page.locator("main img").count() == 0


def test_the_policy_forbids_what_the_page_does_not_need(server: PageServer, browser: Any) -> None:
    """A script that did come into the page would not run, and could load and send nothing."""
    context = browser.new_context()
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
        const image = document.createElement("img");
        image.src = `http://localhost:${location.port}/page/icon.svg`;
        document.body.append(script, handler, style, image);
        handler.click();
        await fetch(`http://localhost:${location.port}/health`).catch(() => {});
        await new Promise((resolve) => setTimeout(resolve, 100));
        return broken.sort();
        }"""
    )
    assert page.evaluate("window.hacked") is None
    context.close()
    assert broken == ["connect-src", "img-src", "script-src-attr", "script-src-elem", "style-src-elem"]


def sources() -> dict[str, str]:
    return {entry.name: entry.read_text(encoding="utf-8") for folder in FOLDERS for entry in folder.iterdir()}


def test_the_page_never_parses_text_as_html_or_code() -> None:
    banned = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|new Function|srcdoc|setHTML"
    for name, text in sources().items():
        if name.endswith(".js"):
            assert not re.search(banned, text), name


def test_the_page_loads_nothing_from_elsewhere_and_has_nothing_inline() -> None:
    for name, text in sources().items():
        addresses = set(re.findall(r"https?://[^\s\"'<)]+", text))
        assert addresses <= {
            "http://www.w3.org/2000/svg",
            "https://html.spec.whatwg.org/multipage/server-sent-events.html",
        }, name
    index = sources()["index.html"]
    assert not re.search(r"<style|style=|\son\w+=|<script(?![^>]*src=)", index)
    for path in re.findall(r'(?:src|href)="(/page/[^"]+)"', index):
        assert path.removeprefix("/page/") in sources()


def test_scripts_are_short_and_import_what_is_there() -> None:
    for name, text in sources().items():
        assert len(text.splitlines()) <= 410, name
        for module in re.findall(r'from "\./([^"]+)"', text):
            assert module in sources(), (name, module)
