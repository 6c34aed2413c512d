"""`prefine serve`: what it says when it starts, and what it refuses in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefine.cli.app import main
from prefine.serving.service import Service
from prefine.web import server
from tests.models.tiny import save_folder


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PREFINE_API_KEY", raising=False)
    return save_folder(tmp_path / "tiny")


def serve(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, list[Service]]:
    """The exit code, and the service that would have run."""
    found: list[Service] = []

    def run(app: Any, service: Service, sock: Any, ready: Callable[[], None]) -> None:
        found.append(service)
        ready()

    monkeypatch.setattr("prefine.serving.server.run_server", run)
    with pytest.raises(SystemExit) as leaving:
        main(["serve", *arguments])
    return int(leaving.value.code or 0), found


def test_it_says_where_it_is_and_how_to_ask_it(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (
        "--slots",
        "3",
        "--max-queue",
        "5",
        "--max-tokens",
        "77",
        "--context",
        "60",
        "--dtype",
        "float32",
        "--no-feedback",
    )
    code, (service,) = serve(monkeypatch, "tiny", "--port", "0", "--device", "cpu", *options)
    assert code == 0
    assert (service.limits.slots, service.limits.max_queue, service.limits.max_tokens) == (3, 5, 77)
    assert service.prompter(service.models.language(None)).context == 60
    assert str(service.models.language(None).loaded.packed.compute_dtype) == "torch.float32"
    shown = capsys.readouterr().err
    assert "Serving tiny at http://127.0.0.1:" in shown
    assert "curl http://127.0.0.1:" in shown
    assert "Authorization" not in shown


def test_with_a_key_the_example_has_it_by_its_variable(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PREFINE_API_KEY", "a-secret-of-this-test")
    code, _ = serve(monkeypatch, "tiny", "--host", "0.0.0.0", "--port", "0", "--no-feedback", "--dtype", "float32")
    assert code == 0
    shown = capsys.readouterr().err
    assert "$PREFINE_API_KEY" in shown
    assert "a-secret-of-this-test" not in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere",), "there is no folder 'nowhere'"),
        (("unfinished",), "the run 'unfinished' has no result yet. Finish it first: add --resume"),
        (("tiny", "other"), "is on another base model than 'tiny'"),
        (
            ("tiny", "--host", "0.0.0.0"),
            "--host: '0.0.0.0' can be reached from other machines, and there is no API key",
        ),
        (("tiny", "--api-key", "two words"), "--api-key: the API key is empty, or has a space"),
        (("tiny", "--device", "abacus"), "'abacus' is not a device"),
        (("tiny", "--dtype", "int3"), "--dtype"),
        (("tiny", "--chat-template", "none.jinja"), "--chat-template"),
    ],
)
def test_what_it_refuses(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    said: str,
) -> None:
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "manifest.json").write_text(json.dumps({"stage": "dpo", "status": "running"}))
    if "other" in arguments:
        save_folder(tmp_path / "other", hidden_size=64)
    code, found = serve(monkeypatch, *arguments, "--port", "0", "--no-feedback")
    assert (code, found) == (2, [])
    error = capsys.readouterr().err
    assert said in error
    assert len([line for line in error.splitlines() if line.startswith("error:")]) == 1


def test_a_port_that_is_taken(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with server.listening_socket("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert serve(monkeypatch, "tiny", "--port", str(port)) == (2, [])
    assert f"error: --port: cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err
    assert not (model.parent / "feedback.db").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--feedback", "bad.db"], "bad.db: is not a SQLite database"),
        (["--feedback", "none/feedback.db"], "there is no folder none"),
        (["--redact-pattern", "("], "--redact-pattern is '(', which is not a regular expression"),
        (["--retention-days", "0"], "--retention-days"),
        ([], "./none"),
    ],
)
def test_feedback_that_cannot_be_kept_is_refused_first(
    words: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.db").write_text("not a database")
    with pytest.raises(SystemExit) as leaving:
        main(["serve", "./none", "--port", "0", *words])
    shown = capsys.readouterr()
    assert leaving.value.code == 2 and shown.out == ""
    assert shown.err.startswith("error: ") and told in shown.err and shown.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["bad.db"]
