"""Text that others wrote reaches the terminal with its control characters written out."""

from __future__ import annotations

import ast
import io
import json
import logging
import unicodedata
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from prefine.cli import row_output
from prefine.cli.app import main
from prefine.cli.chat_session import Chat
from prefine.terminal import visible, visible_json
from prefine.training.display import Display

HOUSE = Path(__file__).parents[1] / "prefine"
# Sets the window's title, clears the screen, goes back in the line; C1's own form of the first; reverses the order.
HOSTILE = "\x1b]0;owned\x07\x1b[2J\r\x9b31m\u202egnp.exe\x7f"
SHOWN = r"\x1b]0;owned\x07\x1b[2J\r\x9b31m\u202egnp.exe\x7f"


def harmless(text: str) -> bool:
    return all(c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs", "Zl", "Zp") for c in text)


def test_control_characters_are_written_out() -> None:
    assert visible(HOSTILE) == SHOWN
    plain = "Grüße 你好 שלום 👩\u200d👩\u200d👧 a\tb\nc \u00a0 [bold]"
    assert visible(plain) == plain


@given(st.text(st.characters(), max_size=40))
def test_nothing_gets_through(text: str) -> None:
    assert harmless(visible(text))
    line = json.dumps(text, ensure_ascii=False)
    assert harmless(visible_json(line))
    assert json.loads(visible_json(line)) == text


def failed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    said = capsys.readouterr()
    text = said.out + said.err
    assert harmless(text)
    return text


@pytest.mark.parametrize(
    "arguments",
    [
        ("sft", f"{HOSTILE}.yaml"),
        ("sft", "recipe.yaml"),
        ("sft", "recipe.yaml", "--set", f"{HOSTILE}=1"),
        ("data", "check", f"{HOSTILE}.jsonl"),
        ("report", f"runs/{HOSTILE}"),
        ("chat", f"./{HOSTILE}"),
        (f"--{HOSTILE}",),
        (HOSTILE,),
        ("data", HOSTILE),
    ],
)
def test_errors_quote_names_safely(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(json.dumps({HOSTILE: 1}))
    assert "owned" in failed(capsys, *arguments)


def test_a_log_line(capsys: pytest.CaptureFixture[str]) -> None:
    failed(capsys, "report", "none")  # which begins to show the log
    last = logging.lastResort
    assert last is not None
    record = logging.LogRecord("prefine", logging.INFO, "", 0, "loading %s", (HOSTILE,), None)
    assert last.format(record) == f"loading {SHOWN}"


def test_what_a_run_says() -> None:
    said = io.StringIO()
    Display(Console(file=said)).say(f"[bold]{HOSTILE}")
    assert said.getvalue() == f"[bold]{SHOWN}\n"


def test_rows_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"prompt": HOSTILE, "completion": "ü"}
    nothing: Any = None
    row_output.write_rows(nothing, [[row]], None, lambda _: None)
    out = capsys.readouterr().out
    assert harmless(out)
    assert json.loads(out) == row
    assert "ü" in out


def test_a_chat(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What a model says, and what it is called; rich's markup in either is text."""

    class Parrot:
        messages = ()
        unseen = 0
        cut = False

        def __init__(self, *_: Any) -> None:
            pass

        def answer(self, said: str) -> Generator[str, None, None]:
            yield from ("[red]", HOSTILE[:1], HOSTILE[1:], "[/red]")

    monkeypatch.setattr("prefine.models.loading.load.load_model", lambda *_, **__: None)
    monkeypatch.setattr("prefine.named_model.locate_model", lambda name: None)
    monkeypatch.setattr("prefine.generation.chat.Talk", Parrot)
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n/exit\n"))
    with pytest.raises(SystemExit):
        main(["chat", f"[bold]{HOSTILE}"])
    out, err = capsys.readouterr()
    assert f"Talking to [bold]{SHOWN}." in err
    assert f"[red]{SHOWN}[/red]" in out


@pytest.mark.parametrize("against", [False, True])
def test_what_models_say_is_wrapped_as_it_is_shown(against: bool) -> None:
    """Escapes are longer than what they stand for."""

    class Parrot:
        messages = ()
        unseen = 0
        cut = False

        def answer(self, said: str) -> Generator[str, None, None]:
            yield HOSTILE * 10

    class Shown:
        width = 80
        said = ""

        def write(self, text: str) -> None:
            self.said += text

        def note(self, text: str) -> None:
            pass

    shown, asked = Shown(), iter(["hello"])
    talks: Any = {name: Parrot() for name in ((HOSTILE, "b") if against else ("a",))}

    def ask() -> str:
        if (said := next(asked, None)) is None:
            raise EOFError
        return said

    Chat(talks, ask, shown).run()
    assert harmless(shown.said)
    assert max(map(len, shown.said.splitlines())) <= 80
    assert against or shown.said.replace("\n", "") == SHOWN * 10


def test_there_is_no_other_way_out() -> None:
    """Commands and stages print through prefine.terminal, or through rich with what it made visible."""
    calls = [
        f"{file.relative_to(HOUSE)}:{node.lineno}"
        for file in HOUSE.rglob("*.py")
        if file.name != "terminal.py"
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "typer.echo", "typer.secho", "click.echo")
    ]
    assert calls == []
