"""The annotation page in a real browser: a person's whole path by keyboard and by mouse, and what is stored."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prefine.annotation.project import Project
from prefine.annotation.records import Ballot, Kind, ProjectSettings, PromptTurn
from tests.annotation.page.conftest import PHONE, Open, at_task
from tests.annotation.page.page_project import MODELS, AnnotationServer, annotation_server, item

LONG = "\n\n".join(f"Paragraph {number} of a long answer." for number in range(40))
ITEMS = {
    "compare": [item(["**First** answer, one.", "Second answer, two."], f"Question {n}?") for n in range(4)],
    "rank": [item(["one", "two", "three", "four"])],
    "thumb": [item([f"Answer {n}"]) for n in range(3)],
    "rewrite": [item(["It left Paris.\n\nAt noon."])],
}
SLOW = pytest.mark.slow
LESS = ("thumb", "rewrite")  # of the kinds, those whose screens have least on them
Serve = Callable[..., AnnotationServer]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Serves a project of a kind; settings may be given."""
    opened: list[Any] = []

    def served(kind: Kind, items: Any = None, password: str | None = None, **settings: Any) -> AnnotationServer:
        given = ProjectSettings(kind=kind, order="given", **settings)
        opened.append(annotation_server(tmp_path / f"{kind}.db", given, items or ITEMS[kind], password))
        server: AnnotationServer = opened[-1].__enter__()
        return server

    yield served
    for one in reversed(opened):
        one.__exit__(None, None, None)


def ballots(project: Project) -> list[Ballot]:
    """Of the current votes."""
    return [vote.ballot for vote in project.votes()]


def model_of(project: Project, identifier: str) -> str:
    """Which model wrote an answer."""
    return next(answer.model for item in project.items() for answer in item.answers if answer.id == identifier)


def shown(page: Any) -> list[str]:
    """The ids of the answers in the order shown."""
    found: list[str] = page.evaluate("[...document.querySelectorAll('.answer[data-id]')].map((e) => e.dataset.id)")
    return found


def test_a_whole_path_by_keyboard(serve: Serve, open_page: Open) -> None:
    server = serve("compare", criteria=("helpful", "harmless"), instructions="# Read\n\n**both**")
    page = open_page(server.link("anna"))
    page.wait_for_selector("#instructions[open] strong")
    page.keyboard.press("a")  # no key judges behind a dialog
    page.keyboard.press("Escape")
    at_task(page, 1)
    first, second = shown(page)
    for key in ("3", "k", "a", "=", "n"):
        page.keyboard.press(key)
    page.keyboard.type("better")
    page.keyboard.press("Escape")
    page.keyboard.press("b")
    at_task(page, 2).keyboard.press("t")
    at_task(page, 3).keyboard.press("x")
    at_task(page, 4).keyboard.press("s")
    page.wait_for_selector("body[data-ready] #again")
    votes = ballots(server.project)
    assert [vote.choice for vote in votes] == [second, "tie", "both_bad", "skip"]
    assert votes[0].strength == 3 and votes[0].note == "better"
    assert votes[0].criteria == {"helpful": first, "harmless": "tie"}
    assert 0 < votes[0].seconds < 60
    assert all(vote.strength is None and not vote.note and not vote.criteria for vote in votes[1:])
    assert len({vote.session for vote in votes}) == 1


def test_a_whole_path_by_mouse(serve: Serve, open_page: Open) -> None:
    server = serve("compare", password="secret words", criteria=("helpful",))
    page = open_page(server.address)
    page.fill("#name", "ben")
    page.fill("#password", "wrong")
    page.get_by_role("button", name="Begin").click()
    page.get_by_text("The password is wrong.").wait_for()
    page.fill("#password", "secret words")
    page.get_by_role("button", name="Begin").click()
    at_task(page, 1)
    first, second = shown(page)
    page.get_by_role("button", name="Clearly").click()
    page.get_by_role("group", name="helpful").get_by_role("button", name="B").click()
    page.fill("#note", "a note")
    page.get_by_role("button", name="A is better").click()
    at_task(page, 2).get_by_role("button", name="Both bad").click()
    at_task(page, 3).get_by_role("button", name="Pause").click()
    page.get_by_role("button", name="Go on").click()
    at_task(page, 3).get_by_role("button", name="Skip").click()
    at_task(page, 4)
    (vote, *others) = ballots(server.project)
    assert (vote.choice, vote.strength, vote.note, vote.criteria) == (first, 2, "a note", {"helpful": second})
    assert [each.choice for each in others] == ["both_bad", "skip"]
    page.get_by_role("button", name="Keys").click()
    page.get_by_role("button", name="Log out").click()
    page.wait_for_selector("#enter")


def test_a_button_works_only_once_its_script_has_come(serve: Serve, open_page: Open) -> None:
    page = open_page(serve("compare").link("anna"))
    held: list[Any] = []
    page.route("**/rest.js", lambda route: held.append(route))  # noqa: PLW0108 (Playwright reads the handler's signature)
    with page.expect_request("**/rest.js"):
        at_task(page, 1).get_by_role("button", name="Pause").click()
    resume = page.get_by_role("button", name="Go on")
    resume.wait_for()
    assert resume.is_disabled()
    held[0].continue_()
    resume.click()
    at_task(page, 1)


def test_undo_brings_the_item_back_with_what_was_said(serve: Serve, open_page: Open) -> None:
    server = serve("compare", criteria=("helpful",))
    page = at_task(open_page(server.link("anna")), 1)
    page.keyboard.press("u")
    page.get_by_text("There is no vote to undo.").wait_for()
    sides = shown(page)
    for key in ("2", "k", "b", "a"):
        page.keyboard.press(key)
    at_task(page, 2).keyboard.press("Control+z")
    at_task(page, 1)
    assert shown(page) == sides
    assert page.locator(".choice.before").get_attribute("data-choice") == sides[0]
    assert page.locator("#options [aria-pressed=true]").all_inner_texts() == ["Clearly", "B"]
    assert not ballots(server.project)
    page.keyboard.press("b")
    at_task(page, 2)
    (vote,) = ballots(server.project)
    assert (vote.choice, vote.strength, vote.criteria) == (sides[1], 2, {"helpful": sides[1]})
    assert len(list(server.project.votes(undone=True))) == 2  # nothing is deleted


def test_a_reload_in_the_middle_loses_nothing(serve: Serve, open_page: Open) -> None:
    server = serve("compare")
    page = at_task(open_page(server.link("anna")), 1)
    sides = shown(page)
    page.keyboard.press("1")
    page.fill("#note", "half a no")
    page.wait_for_timeout(300)
    page.reload()
    at_task(page, 1)
    assert shown(page) == sides and page.input_value("#note") == "half a no"
    page.keyboard.press("a")
    at_task(page, 2)
    (vote,) = ballots(server.project)
    assert (vote.strength, vote.note) == (1, "half a no") and vote.seconds > 0.5  # the time before the reload counts
    assert page.input_value("#note") == "" and page.locator("#options [aria-pressed=true]").count() == 0


def test_a_vote_whose_answer_is_lost_counts_once(serve: Serve, open_page: Open) -> None:
    server = serve("compare")
    page = at_task(open_page(server.link("anna")), 1)
    lost = threading.Event()

    def lose(route: Any) -> None:
        if lost.is_set():
            route.continue_()
            return
        lost.set()
        route.fetch()  # the server writes the vote
        route.abort()

    page.route("**/api/vote", lose)
    page.keyboard.press("a")
    at_task(page, 2)
    assert lost.is_set() and len(list(server.project.votes())) == 1


def test_a_held_key_and_a_key_with_a_modifier_judge_nothing(serve: Serve, open_page: Open) -> None:
    server = serve("compare")
    page = at_task(open_page(server.link("anna")), 1)
    page.keyboard.press("Control+b")
    page.keyboard.press("Alt+a")
    page.keyboard.down("a")
    page.keyboard.down("a")
    at_task(page, 2)
    page.keyboard.down("a")
    page.keyboard.up("a")
    page.wait_for_timeout(200)
    assert len(ballots(server.project)) == 1


def test_sides_are_random_and_models_are_not_told(serve: Serve, open_page: Open) -> None:
    server = serve("compare", [item([f"one {n}", f"two {n}"]) for n in range(6)])
    page = open_page(server.link("anna"))
    left = []
    for number in range(1, 7):
        at_task(page, number)
        assert not any(name in page.content() for name in MODELS)
        left.append(model_of(server.project, shown(page)[0]))
        page.keyboard.press("t")
    page.wait_for_selector("body[data-ready] #again")
    assert set(left) == set(MODELS[:2])


def test_answers_are_ranked_by_typing_by_tapping_and_by_dragging(serve: Serve, open_page: Open) -> None:
    server = serve("rank")
    page = at_task(open_page(server.link("anna")), 1)
    ids = dict(zip("ABCD", shown(page), strict=True))
    page.keyboard.press("Enter")
    page.get_by_text("Rank all answers first, or skip.").wait_for()
    for key in ("c", "a", "=", "b"):
        page.keyboard.press(key)
    page.locator(".tray .chip").click()
    assert page.locator(".places").inner_text().split() == ["C", ">", "A", "=", "B", ">", "D"]
    assert page.locator(".place").all_inner_texts() == ["place 2", "place 2", "place 1", "place 3"]
    box = page.locator(".places .chip").nth(0).bounding_box()
    page.locator(".places .chip").nth(3).hover()
    page.mouse.down()
    page.mouse.move(box["x"] + 20, box["y"] + 10, steps=4)
    page.mouse.move(box["x"] - 10, box["y"] + 10)
    page.mouse.up()
    assert page.locator(".places").inner_text().split() == ["D", ">", "C", ">", "A", "=", "B"]
    page.locator(".places .chip").nth(1).focus()
    page.keyboard.press("ArrowLeft")
    page.get_by_role("button", name="As good as the one before").click()
    page.reload()
    at_task(page, 1).get_by_role("button", name="Save").click()
    page.wait_for_selector("body[data-ready] #again")
    (vote,) = ballots(server.project)
    assert vote.choice == "ranked"
    assert vote.ranking == tuple((ids[letter],) for letter in "CDAB")
    page.keyboard.press("u")
    at_task(page, 1)
    assert page.locator(".places").inner_text().split() == ["C", ">", "D", ">", "A", ">", "B"]


def test_single_answers_get_a_thumb(serve: Serve, open_page: Open) -> None:
    server = serve("thumb", criteria=("helpful",))
    page = at_task(open_page(server.link("anna")), 1)
    for key in ("k", "b", "g"):
        page.keyboard.press(key)
    at_task(page, 2).keyboard.press("-")
    at_task(page, 3).get_by_role("button", name="Good").last.click()
    page.wait_for_selector("body[data-ready] #again")
    assert [vote.choice for vote in ballots(server.project)] == ["up", "down", "up"]
    assert ballots(server.project)[0].criteria == {"helpful": "down"}


def test_an_answer_is_rewritten(serve: Serve, open_page: Open) -> None:
    server = serve("rewrite")
    page = at_task(open_page(server.link("anna")), 1)
    assert page.input_value("#rewritten") == "It left Paris.\n\nAt noon."
    page.keyboard.press("Control+Enter")
    page.get_by_text("Your version is the same as the answer.").wait_for()
    page.keyboard.press("Enter")
    page.keyboard.press("Control+End")
    page.keyboard.type(" Or s.")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("body[data-ready] #again")
    (vote,) = ballots(server.project)
    assert (vote.choice, vote.text) == ("rewritten", "It left Paris.\n\nAt noon. Or s.")
    assert vote.text_of == next(server.project.items()).answers[0].id


def test_an_edited_answer_goes_with_the_vote(serve: Serve, open_page: Open) -> None:
    server = serve("compare")
    page = at_task(open_page(server.link("anna")), 1)
    first, second = shown(page)
    page.keyboard.press("e")
    page.keyboard.press("b")
    area = page.get_by_label("Edited answer B")
    area.fill("A *better* one.")
    page.get_by_role("button", name="A is better").click()
    page.get_by_text("Keep the edit or discard it first.").wait_for()
    area.press("Control+Enter")
    page.get_by_text("Edited by you").wait_for()
    assert page.locator(".answer em").inner_text() == "better"
    page.locator(".edit").first.click()
    page.get_by_text("One answer of an item can be edited.").wait_for()
    page.reload()
    at_task(page, 1).get_by_text("Edited by you").wait_for()
    page.keyboard.press("b")
    at_task(page, 2)
    (vote,) = ballots(server.project)
    assert (vote.choice, vote.text, vote.text_of) == (second, "A *better* one.", second) and first != second


def test_what_differs_is_shown_on_demand(serve: Serve, open_page: Open) -> None:
    server = serve("compare", [item(["It is about 300 km away.", "It is about 470 km away."])])
    page = at_task(open_page(server.link("anna")), 1)
    assert page.locator("mark").count() == 0
    page.keyboard.press("d")
    page.wait_for_selector("mark")
    assert sorted(page.locator("mark").all_inner_texts()) == ["300", "470"]
    page.keyboard.press("d")
    page.wait_for_selector("mark", state="detached")


def test_long_answers_are_folded_alike_and_turns_are_shown(serve: Serve, open_page: Open) -> None:
    turns = (
        PromptTurn("system", "Be brief."),
        PromptTurn("user", "Hello"),
        PromptTurn("assistant", "Hi"),
        PromptTurn("user", "Go on"),
    )
    server = serve("compare", [item([LONG, LONG + "\n\nEnd."], turns)])
    page = at_task(open_page(server.link("anna")), 1)
    assert page.locator(".said .text").all_inner_texts() == ["Be brief.", "Hello", "Hi", "Go on"]
    heights = page.evaluate("[...document.querySelectorAll('.answer .folding')].map((e) => e.clientHeight)")
    assert heights == [480, 480]
    page.get_by_role("button", name="Show all").first.click()
    assert page.locator(".folded").count() == 0
    page.keyboard.press("f")
    assert page.locator(".folded").count() == 2


def test_two_annotators_at_once(serve: Serve, open_page: Open) -> None:
    server = serve("compare", overlap=2)
    anna = at_task(open_page(server.link("anna")), 1)
    ben = at_task(open_page(server.link("ben")), 1)
    for number in range(1, 5):
        at_task(anna, number).keyboard.press("t")
        at_task(ben, number).keyboard.press("x")
    anna.wait_for_selector("body[data-ready] #again")
    ben.wait_for_selector("body[data-ready] #again")
    found = [(vote.annotator, vote.item, vote.ballot.choice) for vote in server.project.votes()]
    assert len(set(found)) == 8
    assert {(name, choice) for name, _, choice in found} == {("anna", "tie"), ("ben", "both_bad")}


@pytest.mark.parametrize(
    "kind", ["compare", "rank", *(pytest.param(kind, marks=SLOW) for kind in ("thumb", "rewrite"))]
)
def test_a_phone_shows_it_all_without_scrolling_sideways(serve: Serve, open_page: Open, kind: Kind) -> None:
    wide = "`" + "wide" * 80 + "`\n\n|a|b|\n|-|-|\n|" + "w" * 90 + "|x|\n\n" + "word" * 60
    count = len(ITEMS[kind][0].answers)
    server = serve(kind, [item([wide] * count, "p" * 300)], criteria=() if kind == "rewrite" else ("helpful",))
    page = at_task(open_page(server.link("anna"), PHONE, has_touch=True), 1)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
    page.get_by_role("button", name="Details").tap()
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
    footer = page.locator("footer").bounding_box()
    assert footer["y"] + footer["height"] <= PHONE[1] + 1
    if kind == "rank":
        for _ in range(4):
            page.locator(".tray .chip").first.tap()
        page.locator("#send-ranking").tap()
    elif kind == "rewrite":
        page.fill("#rewritten", "shorter")
        page.locator("#send-rewritten").tap()
    else:
        page.locator(".choice.main").first.tap()
    page.wait_for_selector("body[data-ready] #again")
    assert len(ballots(server.project)) == 1


def test_colours_follow_the_system_and_the_button(serve: Serve, open_page: Open) -> None:
    page = at_task(open_page(serve("thumb").link("anna"), color_scheme="dark"), 1)
    background = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(background) == "rgb(22, 23, 27)"
    page.click("#theme")
    assert page.evaluate(background) == "rgb(255, 255, 255)"
    page.reload()
    assert page.evaluate(background) == "rgb(255, 255, 255)"


def test_a_session_that_ended_leads_back_to_the_entrance(serve: Serve, open_page: Open) -> None:
    page = at_task(open_page(serve("compare").link("anna")), 1)
    page.context.clear_cookies()
    page.keyboard.press("a")
    page.get_by_text("There is no session, or it has ended").wait_for()
    page.wait_for_selector("#enter")


def test_a_link_that_is_not_valid_says_so(serve: Serve, open_page: Open) -> None:
    page = open_page(serve("thumb").address + "/link#wrong")
    page.get_by_text("This personal link is not valid").wait_for()


def test_a_server_that_starts_again_goes_on(tmp_path: Path, open_page: Open) -> None:
    path, sessions = tmp_path / "project.db", tmp_path / "sessions.json"
    settings = ProjectSettings(order="given")
    with annotation_server(path, settings, ITEMS["compare"], sessions_path=sessions) as server:
        port = int(server.address.rpartition(":")[2])
        page = at_task(open_page(server.link("anna")), 1)
    page.keyboard.press("a")
    page.wait_for_timeout(100)
    with annotation_server(path, settings, (), sessions_path=sessions, port=port) as server:
        at_task(page, 2)
        assert len(ballots(server.project)) == 1


def test_enter_saves_a_ranking_that_was_tapped(serve: Serve, open_page: Open) -> None:
    server = serve("rank", allow_ties=False, criteria=("helpful",))
    page = at_task(open_page(server.link("anna")), 1)
    for _ in range(4):
        page.locator(".tray .chip").first.click()
    assert page.locator("#options button").all_inner_texts() == ["A", "B", "C", "D"]  # no tie
    page.keyboard.press("Space")  # takes the last letter out again
    assert page.locator(".tray .chip").inner_text() == "D"
    page.keyboard.press("Space")
    page.keyboard.press("Enter")
    page.wait_for_selector("body[data-ready] #again")
    assert len(ballots(server.project)[0].ranking) == 4
