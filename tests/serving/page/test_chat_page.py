"""The chat page in a real browser: what people do on it, and what reaches the server."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from prefine.feedback.training_rows import feedback_rows
from tests.serving.page.conftest import PHONE, Open, database_of
from tests.serving.page.page_server import PageServer, page_server

GOOD, BAD = "button[aria-label='Good answer']", "button[aria-label='Bad answer']"
AGAIN = "button[aria-label='Answer again']"
BETTER = "button[aria-label='Better than the other answer']"


def ask(page: Any, question: str, answers: int = 1) -> None:
    """Send a message and wait until all its answers have ended."""
    page.fill("#question", question)
    page.keyboard.press("Enter")
    page.wait_for_selector(f".turn:last-child .answer:nth-child({answers}) {AGAIN}")
    page.wait_for_selector("#stop", state="hidden")


def events(served: PageServer) -> list[tuple[str, str | None]]:
    """Kind and text of each event, in order."""
    connection = sqlite3.connect(database_of(served))
    try:
        return connection.execute("SELECT kind, text FROM events ORDER BY number").fetchall()
    finally:
        connection.close()


def texts(page: Any, selector: str) -> list[str]:
    return [each.strip() for each in page.locator(selector).all_inner_texts()]


def test_a_message_is_sent_with_the_settings_and_the_answer_streams_in(page: Any, server: PageServer) -> None:
    page.click("#open-settings")
    page.fill("#system", "Be brief.")
    page.fill("#temperature", "0.25")
    page.fill("#longest", "64")
    page.click("#settings .primary")
    page.fill("#question", "say one two")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("three")
    page.keyboard.press("Enter")
    page.wait_for_selector(AGAIN)
    assert texts(page, ".text") == ["one two\nthree"]
    assert server.asked == [
        {
            "model": "dpo",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "say one two\nthree"},
            ],
            "temperature": 0.25,
            "max_completion_tokens": 64,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ]
    assert "judge" not in texts(page, "#model option")  # a reward model does not chat
    page.select_option("#model", "sft")
    ask(page, "say four")
    assert server.asked[1]["model"] == "sft"
    assert server.asked[1]["messages"][2:] == [
        {"role": "assistant", "content": "one two\nthree"},
        {"role": "user", "content": "say four"},
    ]


def test_an_answer_is_stopped_by_esc_or_the_button_and_the_server_learns_of_it(page: Any, server: PageServer) -> None:
    for stopped in (1, 2):
        page.fill("#question", "for ever")
        page.keyboard.press("Enter")
        page.locator(".turn:last-child").get_by_text("word 5 ").wait_for()  # it streams
        page.keyboard.press("Escape") if stopped == 1 else page.click("#stop")
        page.locator(".turn:last-child").get_by_text("Stopped.").wait_for()
        page.wait_for_selector("#send", state="visible")
        assert page.locator(GOOD).count() == 0  # the server knows no id for it
        for _ in range(200):
            if server.left == stopped:
                break
            page.wait_for_timeout(10)
        assert server.left == stopped
    said = server.asked[1]["messages"][1]
    assert said["role"] == "assistant" and said["content"].startswith("word 0 word 1")


def test_an_edited_message_goes_out_in_its_place(page: Any, server: PageServer) -> None:
    ask(page, "say one")
    ask(page, "say two")
    page.locator("button[aria-label='Edit and send again']").first.click()
    area = page.locator("textarea[aria-label='Edit message']")
    assert area.input_value() == "say one"
    area.press("Escape")
    assert texts(page, ".bubble") == ["say one", "say two"]
    page.locator("button[aria-label='Edit and send again']").first.click()
    area.fill("say three")
    area.press("Control+Enter")
    page.get_by_text("three", exact=True).wait_for()
    page.wait_for_selector(AGAIN)
    assert texts(page, ".bubble") == ["say three"]
    assert server.asked[-1]["messages"] == [{"role": "user", "content": "say three"}]


def test_thumbs_and_corrections_are_stored_at_the_server(page: Any, server: PageServer) -> None:
    before = len(events(server))
    ask(page, "say It left Paris.")
    page.click(BAD)
    page.wait_for_selector(f"{BAD}[aria-pressed=true]")
    page.click(GOOD)
    page.wait_for_selector(f"{GOOD}[aria-pressed=true]")
    assert page.locator(BAD).get_attribute("aria-pressed") == "false"
    page.click(GOOD)
    page.wait_for_selector(f"{GOOD}[aria-pressed=false]")
    page.click("button[aria-label='Correct this answer']")
    page.fill("textarea[aria-label='Corrected answer']", "It left Lyon.")
    page.get_by_role("button", name="Save").click()
    page.get_by_text("Corrected by you").wait_for()
    assert texts(page, ".answer > .text") == ["It left Lyon."]
    assert events(server)[before:] == [
        ("down", None),
        ("up", None),
        ("withdrawn", None),
        ("correction", '"It left Lyon."'),
    ]
    ask(page, "say on")
    assert server.asked[-1]["messages"][1]["content"] == "It left Lyon."


def test_an_answer_asked_for_again_becomes_a_pair_once_the_conversation_goes_on(page: Any, server: PageServer) -> None:
    before = len(events(server))
    ask(page, "say again")
    page.click(AGAIN)
    page.get_by_text("2/2").wait_for()
    page.click("button[aria-label='Earlier answer']")
    page.get_by_text("1/2").wait_for()
    page.click("button[aria-label='Later answer']")
    page.wait_for_timeout(100)
    assert [kind for kind, _ in events(server)[before:]] == ["regenerated"]


def test_two_models_answer_side_by_side_and_one_goes_on(page: Any, server: PageServer) -> None:
    before = len(events(server))
    page.click("#compare")
    page.select_option("#second-model", "sft")
    ask(page, "hello", answers=2)
    assert [body["model"] for body in server.asked] == ["dpo", "sft"]
    assert server.asked[0]["messages"] == server.asked[1]["messages"]
    left, right = (page.locator(".answer").nth(n).bounding_box() for n in (0, 1))
    assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]
    page.locator(BETTER).nth(1).click()
    page.wait_for_selector(f"{BETTER}[aria-pressed=true]")
    assert page.get_by_label("Go on with this one").nth(1).is_checked()
    assert [kind for kind, _ in events(server)[before:]] == ["preferred"]
    rows = [row for row in feedback_rows(database_of(server), "preferences") if row.number > before]
    assert " ".join(rows[-1].unused or ()) == "answers are the same text"  # of two scripted models


def test_the_conversation_outlives_a_reload_and_not_the_tab(page: Any, server: PageServer, open_page: Open) -> None:
    ask(page, "say stay")
    page.click(GOOD)
    page.wait_for_selector(f"{GOOD}[aria-pressed=true]")
    page.reload()
    page.wait_for_selector(f"{GOOD}[aria-pressed=true]")
    assert texts(page, ".text") == ["stay"]
    other = open_page(server.address)
    other.get_by_text("This page keeps the conversation in this tab").wait_for()
    assert other.locator(".turn").count() == 0
    page.click("#new-chat")
    assert page.locator(".turn").count() == 0
    page.reload()
    page.wait_for_selector("#model option", state="attached")
    assert page.locator(".turn").count() == 0


def test_what_went_wrong_is_said(page: Any) -> None:
    for question, told in (
        ("busy", "too many requests wait. Try again in 7 s."),
        ("break", "The model failed."),
        ("cut", "Cut at the longest answer allowed."),
        ("empty", "The answer is empty."),
    ):
        page.click("#new-chat")
        ask(page, question)
        page.get_by_text(told).wait_for()


def test_a_conversation_without_an_answer_does_not_go_on(page: Any, server: PageServer) -> None:
    ask(page, "busy")
    page.fill("#question", "say on")
    page.keyboard.press("Enter")
    page.get_by_text("The last message has no answer to go on with.").wait_for()
    assert page.input_value("#question") == "say on" and len(server.asked) == 1


def test_the_key_is_asked_for_and_stays_in_the_tab(open_page: Open, tmp_path: Path) -> None:
    with page_server(tmp_path / "feedback.db", api_key="right-key") as served:
        page = open_page(served.address)
        page.wait_for_selector("#key-dialog[open]")
        page.fill("#key", "wrong-key")
        page.keyboard.press("Enter")
        page.get_by_text("That is not the key.").wait_for()
        page.fill("#key", "right-key")
        page.keyboard.press("Enter")
        page.wait_for_selector("#model option", state="attached")
        ask(page, "say in")
        # Without --store-prompts there is nothing to correct, and the page says what is kept.
        assert page.locator(GOOD).count() == 1
        assert page.locator("button[aria-label='Correct this answer']").count() == 0
        page.click(GOOD)
        page.wait_for_selector(f"{GOOD}[aria-pressed=true]")
        page.reload()
        page.wait_for_selector("#model option", state="attached")
        assert page.evaluate("localStorage.getItem('prefine-key')") is None
        assert [kind for kind, _ in events(served)] == ["up"]


def test_without_feedback_there_are_no_thumbs(open_page: Open) -> None:
    with page_server(None) as served:
        page = open_page(served.address)
        page.wait_for_selector("#model option", state="attached")
        ask(page, "say no")
        assert page.locator(GOOD).count() == 0


def test_a_phone_shows_everything_without_scrolling_sideways(open_page: Open, server: PageServer) -> None:
    page = open_page(server.address, PHONE, is_mobile=True, has_touch=True)
    page.wait_for_selector("#model option", state="attached")
    page.click("#compare")
    wide = "`" * 3 + "\n" + "x" * 300 + "\n" + "`" * 3 + "\n\n|" + "column|" * 20 + "\n" + "|-" * 20 + "|\n" + "y" * 300
    ask(page, f"say {wide}", answers=2)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
    assert page.evaluate("document.getElementById('scroller').scrollWidth") <= PHONE[0]
    upper, lower = (page.locator(".answer").nth(n).bounding_box() for n in (0, 1))
    assert upper["y"] + upper["height"] <= lower["y"]
    for control in page.locator("button:visible, select:visible, textarea:visible").all():
        control.scroll_into_view_if_needed()
        box = control.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= PHONE[0], control.get_attribute("aria-label")


def test_every_control_has_a_name(page: Any) -> None:
    page.click("#compare")
    ask(page, "say one", answers=2)
    page.click(AGAIN)
    page.get_by_text("2/2").wait_for()
    page.evaluate("for (const dialog of document.querySelectorAll('dialog')) dialog.show()")
    for control in page.locator("button, select, textarea, input").all():
        name = control.evaluate(
            "(e) => e.getAttribute('aria-label') || e.labels?.[0]?.textContent || e.textContent || ''"
        )
        assert name.strip(), control.evaluate("(e) => e.outerHTML")


def test_colours_follow_the_system_until_one_is_chosen(open_page: Open, server: PageServer) -> None:
    page = open_page(server.address, color_scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    page.emulate_media(color_scheme="light")
    light = page.evaluate(background)
    assert dark != light
    page.click("#theme")  # light
    page.click("#theme")  # dark
    assert page.evaluate(background) == dark
    page.reload()
    assert page.evaluate(background) == dark


def test_long_conversations_stay_quick(page: Any) -> None:
    """A thousand turns that were kept are drawn, and a message is answered, within seconds."""
    page.evaluate(
        """() => {
        const version = (n) => ({id: `c${n}`, text: `**answer** ${n}\\n\\n- a\\n- b`, state: "done", error: null,
          finish: "stop", tokens: 5, thumb: null, correction: null, better: false});
        const turns = Array.from({length: 1000}, (_, n) => ({question: `question ${n}`, chosen: 0,
          slots: [{model: "dpo", versions: [version(n)], shown: 0}]}));
        sessionStorage.setItem("prefine-conversation", JSON.stringify(turns));
        }"""
    )
    page.reload()
    page.get_by_text("question 999").wait_for()
    start = page.evaluate("performance.now()")
    ask(page, "say quick")
    assert page.evaluate("performance.now()") - start < 5_000
    assert (
        page.evaluate("(s => s.scrollHeight - s.scrollTop - s.clientHeight)(document.getElementById('scroller'))") < 80
    )
