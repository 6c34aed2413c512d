"""A chat in a terminal: keys, commands, what is kept and what is saved. The model is a parrot."""

from __future__ import annotations

import io
import json
import signal
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from prefine.cli.app import main
from prefine.cli.chat_input import Ask, InterruptedPrompt, prompt
from prefine.cli.chat_session import COMMANDS, Chat
from prefine.data.reading.quarantine import Quarantine
from prefine.data.records.stream import read_records
from prefine.errors import DataError
from prefine.generation.chat import Talk
from prefine.generation.sampling import Sampling
from prefine.records import Demonstration, Message


class Parrot(Talk):
    """Says each word of what was said in capitals; nothing to "hush". `at` is called before each piece."""

    def __init__(self, at: Callable[[int], None] = lambda piece: None) -> None:
        self.sampling = Sampling(50, 0.7)
        self._opening = ()
        self._turns = ()
        self.unseen = 0
        self.cut = False
        self.at = at

    def answer(self, said: str) -> Generator[str, None, None]:
        if said == "fail":
            raise DataError("the parrot is asleep", "Wake it.")
        asked = (*self._turns, Message(role="user", content=said))
        text = ""
        try:
            for number, word in enumerate([] if said == "hush" else said.upper().split()):
                self.at(number)
                text += f" {word}" if text else word
                yield f" {word}" if number else word
        except GeneratorExit:
            self._keep(asked, text)
            raise
        self._keep(asked, text)


class Shown:
    """A terminal of this width, or a pipe."""

    def __init__(self, width: int | None = 80) -> None:
        self.width = width
        self.said = ""
        self.notes: list[str] = []

    def write(self, text: str) -> None:
        self.said += text

    def note(self, text: str) -> None:
        self.notes.append(text)


def answers(*turns: str | type[BaseException]) -> Ask:
    """Asks that are answered so, and then with the end of input."""
    left = iter(turns)

    def ask() -> str:
        turn = next(left, EOFError)
        if isinstance(turn, str):
            return turn
        raise turn

    return ask


def chatted(
    *turns: str | type[BaseException], talks: dict[str, Talk] | None = None, width: int | None = 80
) -> tuple[Shown, list[Talk]]:
    shown, talks = Shown(width), talks or {"parrot": Parrot()}
    Chat(talks, answers(*turns), shown).run()
    return shown, list(talks.values())


def texts(talk: Talk) -> list[str]:
    return [message.content for message in talk.messages]


# --- Keys --------------------------------------------------------------------------------------------------------


@pytest.fixture
def keyboard() -> Iterator[PipeInput]:
    with create_pipe_input() as source:
        yield source


def typed(keyboard: PipeInput, *keys: str) -> list[str | type[BaseException]]:
    """What the prompt gives, one after the other."""
    ask = prompt(list(COMMANDS), keyboard, DummyOutput())
    keyboard.send_text("".join(keys))
    found: list[str | type[BaseException]] = []
    while not found or found[-1] is not EOFError:
        try:
            found.append(ask())
        except (EOFError, InterruptedPrompt) as error:
            found.append(type(error))
    return found[:-1]


END = "\x04"


def test_enter_sends_and_ctrl_d_ends(keyboard: PipeInput) -> None:
    assert typed(keyboard, "hello\r", "again\r", END) == ["hello", "again"]


def test_editing_keys(keyboard: PipeInput) -> None:
    """Home, delete, a word to the left, the end."""
    assert typed(keyboard, "xello\x01\x1b[3~h\x05 worlds\x7f!\r", END) == ["hello world!"]


def oldest_of_history(keyboard: PipeInput, ask: Ask) -> str | type[BaseException]:
    """What is sent once Up has led to the oldest turn. The history is loaded while keys are read already."""
    buffer = ask.__self__.default_buffer  # type: ignore[attr-defined]
    strings = ask.__self__.history.get_strings()  # type: ignore[attr-defined]

    def press() -> None:
        while buffer.text != strings[0]:
            keyboard.send_text("\x1b[A")
            time.sleep(0.02)
        keyboard.send_text("\r")

    with ThreadPoolExecutor() as pool:
        pressed = pool.submit(press)
        said = ask()
        pressed.result()
    return said


def test_history_keys(keyboard: PipeInput) -> None:
    ask = prompt(list(COMMANDS), keyboard, DummyOutput())
    keyboard.send_text("one\rtwo\r")
    assert [ask(), ask(), oldest_of_history(keyboard, ask)] == ["one", "two", "one"]


def test_alt_enter_begins_a_line(keyboard: PipeInput) -> None:
    assert typed(keyboard, "a\x1b\rb\r", END) == ["a\nb"]


@pytest.mark.parametrize("lines", [3, 5_000])
def test_pasted_lines_are_one_turn_of_any_length(keyboard: PipeInput, lines: int) -> None:
    pasted = "".join(f"line {number}\r\n" for number in range(lines)) + "/help"
    turns = typed(keyboard, f"\x1b[200~{pasted}\x1b[201~\r", END)
    assert turns == [pasted.replace("\r\n", "\n")]


def test_ctrl_c_clears_what_is_typed_and_then_interrupts(keyboard: PipeInput) -> None:
    ask = prompt(list(COMMANDS), keyboard, DummyOutput())
    keyboard.send_text("hello\x03\x03")
    with pytest.raises(InterruptedPrompt):
        ask()
    assert oldest_of_history(keyboard, ask) == "hello"


def test_tab_completes_commands(keyboard: PipeInput) -> None:
    assert typed(keyboard, "/und\t\r", END) == ["/undo"]


def test_no_file_holds_what_was_typed(keyboard: PipeInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PREFINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    typed(keyboard, "secret\r", END)
    assert list(tmp_path.rglob("*")) == []


# --- Leaving -----------------------------------------------------------------------------------------------------


def test_ctrl_c_leaves_at_the_second_time_in_a_row() -> None:
    shown, _ = chatted(InterruptedPrompt, "hello", InterruptedPrompt, InterruptedPrompt, "never")
    assert shown.said == "HELLO\n"
    assert shown.notes == ["Press Ctrl-C again, or Ctrl-D, to leave."] * 2


def test_exit_leaves() -> None:
    assert chatted("/exit", "never")[0].said == ""


# --- Stopping an answer ------------------------------------------------------------------------------------------


def test_ctrl_c_stops_the_answer_and_what_was_said_is_kept() -> None:
    before = signal.getsignal(signal.SIGINT)
    parrot = Parrot(lambda piece: signal.raise_signal(signal.SIGINT) if piece == 1 else None)
    shown, (talk,) = chatted("one two three four", "next", talks={"parrot": parrot})
    assert shown.said == "ONE TWO\nNEXT\n"
    assert shown.notes == ["stopped"]
    assert texts(talk) == ["one two three four", "ONE TWO", "next", "NEXT"]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_step_that_takes_for_ever_can_be_left() -> None:
    parrot = Parrot(lambda piece: [signal.raise_signal(signal.SIGINT) for _ in range(3)] and None)
    with pytest.raises(KeyboardInterrupt):
        chatted("one two", talks={"parrot": parrot})


@pytest.mark.parametrize("width", [120, 50])
def test_ctrl_c_stops_both_models(width: int) -> None:
    """Beside the other, both have begun; below it, the second one has not, and keeps no turn."""
    parrot = Parrot(lambda piece: signal.raise_signal(signal.SIGINT) if piece == 1 else None)
    _, (left, right) = chatted("one two three", talks={"a": parrot, "b": Parrot()}, width=width)
    assert texts(left) == ["one two three", "ONE TWO"]
    assert texts(right) == (["one two three", "ONE TWO"] if width == 120 else [])


# --- Commands ----------------------------------------------------------------------------------------------------


def test_help_names_every_command() -> None:
    shown, _ = chatted("/help")
    assert [note.split()[0] for note in shown.notes[: len(COMMANDS)]] == list(COMMANDS)
    assert "Ctrl-C stops an answer" in shown.notes[-1]


def test_an_unknown_command_names_the_known_ones_and_is_not_said() -> None:
    shown, (talk,) = chatted("/undoo", "/zzz 1")
    assert shown.notes[0].startswith("There is no command /undoo. Did you mean /undo? Commands are /help, /system,")
    assert shown.notes[1].startswith("There is no command /zzz. Commands are /help,")
    assert texts(talk) == []


@pytest.mark.parametrize("said", ["/etc/hosts is a file", "// a comment", " /help", "1/2", "/"])
def test_what_only_begins_like_a_command_is_said(said: str) -> None:
    assert texts(chatted(said)[1][0])[0] == said.strip()


def test_blank_lines_are_passed_over() -> None:
    assert texts(chatted("", "  ", "\n")[1][0]) == []


def test_system_sets_shows_and_removes_the_system_turn() -> None:
    shown, (talk,) = chatted("/system", "/system Be brief.\nBe kind.", "hello", "/system", "/system off", "/system")
    assert shown.notes[0] == "There is no system turn."
    assert shown.notes[1:3] == ["The system turn is: Be brief.\nBe kind."] * 2
    assert shown.notes[3:] == ["There is no system turn."] * 2
    assert [message.role for message in talk.messages] == ["user", "assistant"]


def test_temperature_and_top_p() -> None:
    shown, (talk,) = chatted(
        "/temperature", "/temperature 0.2", "/top-p 0.9", "/top-p 2", "/temperature hot", "/top-p nan"
    )
    assert (talk.sampling.temperature, talk.sampling.top_p) == (0.2, 0.9)
    assert shown.notes == [
        "temperature is 0.7.",
        "temperature is 0.2.",
        "top-p is 0.9.",
        "error: /top-p 2: it must be above 0, at most 1. Write /top-p NUMBER.",
        "error: /temperature hot: it must be a number. Write /temperature NUMBER.",
        "error: /top-p nan: it must be above 0, at most 1. Write /top-p NUMBER.",
    ]


def test_undo_takes_back_the_last_question_and_reset_all() -> None:
    shown, (talk,) = chatted("one", "two", "/undo", "three", "/undo", "/undo", "/undo", "four", "/reset", "/undo")
    assert texts(talk) == []
    nothing = "There is nothing to remove."
    assert shown.notes == [
        "Removed; 1 question left.",
        "Removed; 1 question left.",
        "Removed; 0 questions left.",
        nothing,
        "A new conversation.",
        nothing,
    ]


def test_undo_takes_back_one_turn_of_each_model_also_where_one_said_nothing() -> None:
    class Silent(Parrot):
        def answer(self, said: str) -> Generator[str, None, None]:
            return super().answer("hush" if said == "two" else said)

    shown, (left, right) = chatted("one", "two", "/undo", talks={"a": Parrot(), "b": Silent()})
    assert texts(left) == texts(right) == ["one", "ONE"]
    assert "b: the answer is blank, so this turn is not kept" in shown.notes


def test_an_error_is_shown_and_the_chat_goes_on() -> None:
    shown, (talk,) = chatted("fail", "hello")
    assert shown.notes == ["error: the parrot is asleep. Wake it."]
    assert texts(talk) == ["hello", "HELLO"]


def test_an_error_in_a_pipe_ends_the_chat() -> None:
    with pytest.raises(DataError):
        chatted("fail", "hello", width=None)


# --- Saving ------------------------------------------------------------------------------------------------------


def demonstrations(path: Path) -> list[Demonstration]:
    """All rows of a file; none is refused."""
    with Quarantine(None) as quarantine:
        records = list(read_records([str(path)], Demonstration, quarantine=quarantine, deduplicate=False))
    assert quarantine.total == 0
    return records


def test_what_is_saved_is_read_as_a_demonstration(tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    shown, (talk,) = chatted("/system Be brief.", "one\ntwo ü", "three", f"/save {path}")
    assert shown.notes[-1] == f"The conversation is in {path}."
    (found,) = demonstrations(path)
    assert found.messages == talk.messages
    assert [message.role for message in found.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert json.loads(path.read_text(encoding="utf-8"))["model"] == "parrot"


def test_two_models_are_saved_as_two_rows(tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    chatted("one", f"/save {path}", "two", f"/save {path}", talks={"a": Parrot(), "b": Parrot()})
    first, second = demonstrations(path)
    assert len(first.messages) == len(second.messages) == 4
    assert [json.loads(line)["model"] for line in path.read_text().splitlines()] == ["a", "b"]


def test_saving_replaces_no_file_of_others(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text("mine")
    shown, _ = chatted(
        "/save x.jsonl", "one", "/save", f"/save {tmp_path}/mine", f"/save {tmp_path}/a.txt", f"/save {tmp_path}/no/a"
    )
    assert shown.notes[0] == "There is nothing to save yet."
    assert shown.notes[1] == "error: /save needs the name of a file. Write /save FILE.jsonl."
    assert "mine.jsonl already exists. Choose another name." in shown.notes[2]
    assert "a.txt does not end in .jsonl." in shown.notes[3]
    assert "there is no folder" in shown.notes[4]
    assert (tmp_path / "mine.jsonl").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (".", "is a folder"),
        ("/", "is a folder"),
        ("..", "is a folder"),
        ("{there}", "is a folder"),
        ("new/", "is a folder"),
        ("a" * 300, "could not be written"),
        ("a\0b", "a name cannot hold NUL"),
    ],
)
def test_a_name_that_no_file_can_have_is_an_error_and_the_chat_goes_on(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder := tmp_path / "folder").mkdir()
    monkeypatch.chdir(folder)
    shown, (talk,) = chatted("one", f"/save {name.format(there=folder)}", "two")
    (error,) = shown.notes
    assert error.startswith("error: ")
    assert said in error
    assert len(talk.messages) == 4
    assert [path.name for path in tmp_path.rglob("*")] == ["folder"]


# --- Two models --------------------------------------------------------------------------------------------------


def test_a_wide_terminal_has_columns() -> None:
    shown, _ = chatted("one two", talks={"left": Parrot(), "right": Parrot()}, width=80)
    title, rule, line = shown.said.splitlines()
    assert title.split("│")[0].strip() == "left"
    assert title.split("│")[1].strip() == "right"
    assert set(rule) == set("─┼")
    assert [part.strip() for part in line.split("│")] == ["ONE TWO", "ONE TWO"]


@pytest.mark.parametrize("width", [78, None])
def test_a_narrow_one_and_a_pipe_have_one_after_the_other(width: int | None) -> None:
    shown, _ = chatted("one two", talks={"left": Parrot(), "right": Parrot()}, width=width)
    assert shown.said == "[left]\nONE TWO\n[right]\nONE TWO\n"


def test_what_is_unusual_is_told_of_each_model() -> None:
    class Cut(Parrot):
        def answer(self, said: str) -> Generator[str, None, None]:
            self.cut, self.unseen = True, 2
            return super().answer(said)

    shown, _ = chatted("one", talks={"left": Parrot(), "right": Cut()})
    assert shown.notes == [
        "right: cut after 50 tokens (--max-new-tokens)",
        "right: the context is full: the model no longer sees the oldest turns",
    ]


# --- The verb ----------------------------------------------------------------------------------------------------


@pytest.fixture
def parrots(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The verb talks with parrots; what it gave them."""
    given: list[Any] = []

    def made(loaded: object, system: str | None, sampling: Sampling) -> Parrot:
        given.append((loaded, system, sampling))
        parrot = Parrot()
        parrot.sampling = replace(sampling)
        return parrot

    monkeypatch.setattr("prefine.models.loading.load.load_model", lambda section, *_, **__: section.name)
    monkeypatch.setattr("prefine.named_model.locate_model", lambda name: None)
    monkeypatch.setattr("prefine.generation.chat.Talk", made)
    return given


def test_piped_lines_are_turns_and_standard_output_has_answers_alone(
    parrots: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("hello you\r\n\n/undo\nbye"))
    with pytest.raises(SystemExit) as left:
        main(["chat", "m", "--against", "m", "--top-p", "0.5", "--temperature", "0.1", "--system", "Be brief."])
    assert left.value.code == 0
    out, err = capsys.readouterr()
    assert out == "[m]\nHELLO YOU\n[m (2)]\nHELLO YOU\n[m]\nBYE\n[m (2)]\nBYE\n"
    assert err.splitlines()[0] == "Talking to m and m (2). /help lists commands, Ctrl-D leaves."
    assert [(name, system, s.top_p, s.temperature) for name, system, s in parrots] == [("m", "Be brief.", 0.5, 0.1)] * 2


def test_bytes_that_are_no_text_end_a_piped_chat_in_one_line(
    parrots: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe\n"), encoding="utf-8"))
    with pytest.raises(SystemExit) as left:
        main(["chat", "m"])
    assert left.value.code == 2
    assert (
        "error: standard input holds bytes that are not valid UTF-8. Convert it to UTF-8.\n" in capsys.readouterr().err
    )


def test_a_top_p_out_of_range_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["chat", "m", "--top-p", "1.5"])
    assert "--top-p is 1.5; it must be above 0, at most 1" in capsys.readouterr().err
