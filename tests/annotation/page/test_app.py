"""The page's routes: sessions, CSRF, votes that count once, and that no model's name leaves the server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from prefine.annotation.page.app import create_app
from prefine.annotation.project import Project, ProjectReader
from prefine.annotation.records import Kind, ProjectSettings
from prefine.web.guard import SECURITY_HEADERS
from prefine.web.policy import session_policy
from prefine.web.sessions import TOKEN_HEADER
from tests.annotation.page.page_project import MODELS, item

ORIGIN = "http://127.0.0.1:8000"


class Browser:
    """A client with cookies that sends what the page's script would send."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.cookies = httpx.Cookies()
        self.token = ""

    def ask(self, method: str, path: str, headers: dict[str, str] | None = None, **options: Any) -> httpx.Response:
        async def asked() -> httpx.Response:
            transport = httpx.ASGITransport(app=self._app)
            async with httpx.AsyncClient(transport=transport, base_url=ORIGIN, cookies=self.cookies) as client:
                response = await client.request(method, path, headers=headers, **options)
                self.cookies = client.cookies
                return response

        return asyncio.run(asked())

    def page(self) -> str:
        """The screen; its token is remembered."""
        text = self.ask("GET", "/").text
        self.token = re.findall(r'name="form-token" content="([^"]*)"', text)[0]
        return text

    def post(self, path: str, body: dict[str, Any] | None = None, **headers: str) -> httpx.Response:
        usual = {TOKEN_HEADER: self.token, "origin": ORIGIN, "content-type": "application/json"}
        return self.ask("POST", path, usual | headers, content=json.dumps(body or {}))

    def enter(self, name: str = "anna", password: str = "") -> httpx.Response:
        response = self.post("/api/enter", {"name": name, "password": password})
        self.page()
        return response


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    with project_of(tmp_path, "compare") as made:
        yield made


def project_of(folder: Path, kind: Kind) -> Project:
    """Two items of a kind."""
    count = 2 if kind in ("compare", "rank") else 1
    project = Project.create(folder / f"{kind}.db", ProjectSettings(kind=kind, order="given", title="Which is better?"))
    project.add_items([item([f"one {n}", f"two {n}"][:count], f"Question {n}?") for n in range(2)])
    return project


def client(project: Project, password: str | None = None) -> Browser:
    return Browser(create_app(project, session_policy("127.0.0.1", password), password))


def code(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


def task(page: str) -> tuple[str, list[str]]:
    """The token and the answers' ids, in the order shown."""
    return re.findall(r'data-token="([^"]+)"', page)[0], re.findall(r'class="answer" data-id="([^"]+)"', page)


def ballot(page: str, **said: Any) -> dict[str, Any]:
    token, ids = task(page)
    return {"token": token, "key": "key-00000001", "choice": ids[0]} | said


@pytest.mark.parametrize("kind", ["compare", "rank", "thumb", "rewrite"])
def test_no_model_or_run_is_sent_to_a_browser(tmp_path: Path, kind: Kind) -> None:
    with project_of(tmp_path, kind) as project:
        anna = client(project)
        anna.enter()
        page = anna.page()
        assert "Question 0?" in page and "one 0" in page
        answers = [page, anna.ask("GET", "/link").text, anna.post("/api/differences", {"token": task(page)[0]}).text]
        anna.post("/api/vote", ballot(page, choice="skip"))
        answers += [anna.post("/api/undo").text, anna.post("/api/pause", {"paused": True}).text, anna.page()]
        for text in answers:
            assert not any(name in text for name in MODELS) and "runs/" not in text
            assert "sft" not in text.lower()


def test_a_project_that_cannot_be_read_says_no_path_to_a_browser(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / f"{MODELS[0]}-against-{MODELS[1]}"
    folder.mkdir()
    with project_of(folder, "compare") as project:
        anna = client(project)
        anna.enter()
        body = ballot(anna.page())
        nobody = client(project)
        with contextlib.closing(sqlite3.connect(folder / "compare.db")) as other:
            other.execute("DROP TABLE settings")
        answers = [nobody.ask("GET", "/"), nobody.ask("GET", "/link"), anna.post("/api/vote", body)]
    assert [answer.status_code for answer in answers] == [503] * 3
    for answer in answers:
        assert not any(name in answer.text for name in MODELS) and str(tmp_path) not in answer.text
        assert "sft" not in answer.text and answer.json()["error"]["code"] == "project_unavailable"
    assert str(folder / "compare.db") in caplog.text


def test_every_response_has_the_security_headers(project: Project) -> None:
    anna = client(project)
    for path in ("/", "/link", "/page/task.js", "/nothing"):
        response = anna.ask("GET", path)
        for name, value in SECURITY_HEADERS.items():
            assert response.headers[name] == (
                "no-cache" if (path, name) == ("/page/task.js", "cache-control") else value
            )


def test_a_personal_link_lets_its_owner_in_until_there_is_a_newer_one(project: Project) -> None:
    token = project.annotator("anna")
    anna = client(project, "secret words")
    assert anna.post("/api/link", {"token": token}).status_code == 200
    assert "Question 0?" in anna.page()
    body = ballot(anna.page())
    newer = project.annotator("anna")
    assert code(anna.post("/api/vote", body)) == (401, "no_session")
    assert 'id="password"' in anna.page()
    assert code(client(project).post("/api/link", {"token": token})) == (401, "not_let_in")
    assert client(project).post("/api/link", {"token": newer}).status_code == 200


def test_a_password_is_asked_for_and_guessing_it_takes_long(project: Project) -> None:
    anna = client(project, "secret words")
    assert 'id="password"' in anna.page()
    for wrong in ("", "secret", "Secret words", "secret words ", "\u00e9"):
        assert code(anna.post("/api/enter", {"name": "anna", "password": wrong})) == (401, "not_let_in")
    response = anna.post("/api/enter", {"name": "anna", "password": "secret words"})
    assert code(response) == (429, "too_many_attempts") and response.headers["retry-after"] == "1"
    assert project.progress().annotators == ()
    assert client(project, "secret words").enter(password="secret words").status_code == 200


@pytest.mark.parametrize("newer", ["other words", None])
def test_a_changed_password_ends_the_sessions_that_it_began(
    newer: str | None, tmp_path: Path, project: Project
) -> None:
    def opened(password: str | None) -> Browser:
        policy = session_policy("127.0.0.1", password)
        return Browser(create_app(project, policy, password, tmp_path / "sessions.json"))

    anna = opened("secret words")
    anna.enter(password="secret words")
    ben = opened("secret words")
    ben.post("/api/link", {"token": project.annotator("ben")})
    assert "secret words" not in (tmp_path / "sessions.json").read_text()
    for password, answers in (("secret words", True), (newer, False)):
        again, linked = opened(password), opened(password)
        again.cookies, linked.cookies = anna.cookies, ben.cookies
        assert ('class="answer"' in again.page()) == answers
        assert 'class="answer"' in linked.page()


@pytest.mark.parametrize("name", ["", "  ", "a\x00b", "a\u202eb", "x" * 61])
def test_names_that_nobody_has_are_refused(project: Project, name: str) -> None:
    anna = client(project)
    response = anna.post("/api/enter", {"name": name})
    assert response.status_code == 400 and not anna.cookies
    assert 'id="enter"' in anna.page()


def test_nothing_is_changed_without_a_session_and_its_token(project: Project) -> None:
    anna, nobody = client(project), client(project)
    anna.enter()
    body = ballot(anna.page())
    changes: list[tuple[str, dict[str, Any]]] = [
        ("/api/vote", body),
        ("/api/undo", {}),
        ("/api/pause", {"paused": True}),
        ("/api/differences", {"token": body["token"]}),
        ("/api/leave", {}),
    ]
    for path, said in changes:
        nobody.token = anna.token
        assert code(nobody.post(path, said)) == (401, "no_session")
        assert code(anna.post(path, said, **{TOKEN_HEADER: "wrong"})) == (403, "wrong_csrf_token")
        assert code(anna.post(path, said, origin="https://evil.example")) == (403, "origin_not_allowed")
        assert code(anna.post(path, said, host="evil.example")) == (403, "host_not_allowed")
        form = {"content-type": "application/x-www-form-urlencoded", TOKEN_HEADER: anna.token}
        assert code(anna.ask("POST", path, form, content=b"a=1")) == (415, "unsupported_media_type")
    assert not list(project.votes(undone=True))
    assert anna.post("/api/vote", body).status_code == 200


def test_a_vote_counts_once_and_only_for_the_open_task(project: Project) -> None:
    anna = client(project)
    anna.enter()
    body = ballot(page := anna.page(), strength=2, note="<b>", seconds=3.5)
    number = anna.post("/api/vote", body).json()["number"]
    assert anna.post("/api/vote", body).json()["number"] == number
    (vote,) = project.votes()
    assert vote.annotator == "anna" and vote.ballot.choice == task(page)[1][0]
    assert (vote.ballot.strength, vote.ballot.note, vote.ballot.seconds) == (2, "<b>", 3.5)
    assert len(vote.ballot.session) == 16  # a name of the visit, which is not the cookie
    assert code(anna.post("/api/vote", body | {"key": "key-00000002"})) == (409, "vote_refused")
    assert "Question 1?" in anna.page()
    undone = anna.post("/api/undo").json()
    assert (undone["ballot"]["choice"], undone["answers"]) == (body["choice"], task(page)[1])
    assert task(anna.page())[1] == task(page)[1]
    assert anna.post("/api/undo").json() == {"ballot": None}


@pytest.mark.parametrize(
    "said",
    [
        {"choice": "someone"},
        {"strength": 4},
        {"strength": "2"},
        {"key": "short"},
        {"seconds": -1},
        {"criteria": {"helpful": "tie"}},
        {"ranking": [["a"]]},
        {"annotator": "ben"},
        {"repeat": True},
        {"text": "x" * 100_001},
        {"text": "\ud800"},
        {"note": "\ud800"},
    ],
)
def test_a_ballot_that_is_not_allowed_is_refused(project: Project, said: dict[str, Any]) -> None:
    anna = client(project)
    anna.enter()
    response = anna.post("/api/vote", ballot(anna.page(), **said))
    assert response.status_code in (400, 409) and response.json()["error"]["message"]
    assert not list(project.votes())


def test_pausing_and_coming_to_the_end(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(ProjectReader, "progress")  # which reads all votes
    anna = client(project)
    anna.enter()
    assert anna.post("/api/pause", {"paused": True}).status_code == 200
    assert "Paused" in anna.page()
    anna.post("/api/pause", {"paused": False})
    for number in range(2):
        anna.post("/api/vote", ballot(anna.page(), choice="tie", key=f"key-0000000{number}"))
    assert "Nothing left to judge" in (page := anna.page()) and "<strong>2</strong> items" in page
    anna.post("/api/leave")
    assert 'id="enter"' in anna.page()


def test_what_differs_is_shown_of_the_open_task_only(project: Project) -> None:
    anna = client(project)
    anna.enter()
    token, ids = task(page := anna.page())
    texts = {answer.id: answer.text for each in project.items() for answer in each.answers}
    parts = anna.post("/api/differences", {"token": token}).json()["parts"]
    assert ["".join(text for text, _ in side) for side in parts] == [texts[each] for each in ids]
    anna.post("/api/vote", ballot(page))
    assert code(anna.post("/api/differences", {"token": token})) == (409, "no_task")
    newer = task(anna.page())[0]
    assert code(anna.post("/api/differences", {"token": token})) == (409, "no_task")
    assert anna.post("/api/differences", {"token": newer}).status_code == 200
    anna.post("/api/pause", {"paused": True})
    assert code(anna.post("/api/differences", {"token": newer})) == (409, "no_task")


def test_two_annotators_judge_different_items(project: Project) -> None:
    anna, ben = client(project), client(project)
    anna.enter()
    ben.enter("ben")
    assert ("Question 0?" in anna.page()) and ("Question 1?" in ben.page())


def test_a_session_of_another_project_leads_to_the_entrance(tmp_path: Path, project: Project) -> None:
    sessions = tmp_path / "sessions.json"
    anna = Browser(create_app(project, session_policy("127.0.0.1", None), None, sessions))
    anna.enter()
    with project_of(tmp_path, "thumb") as other:
        again = Browser(create_app(other, session_policy("127.0.0.1", None), None, sessions))
        again.cookies = anna.cookies
        assert 'id="enter"' in again.page()
        again.enter("ben")
        assert "Question 0?" in again.page()
