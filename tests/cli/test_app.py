"""The command line answers without torch, and every way out has its exit code and its words."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import typer
from typer.testing import CliRunner

from prefine import __version__
from prefine.cli import app as app_module
from prefine.cli.app import VERBS, app, create_app, main
from prefine.errors import DataError, Stopped

HEAVY = ("torch", "transformers", "peft", "accelerate", "datasets", "numpy", "matplotlib")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = f"""
import sys
from prefine.cli.app import main
try:
    main({list(arguments)!r})
finally:
    print("loaded:", [name for name in {HEAVY!r} if name in sys.modules])
"""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_loads_nothing_heavy(verb: str) -> None:
    shown = run(*verb.split(), "--help")
    assert shown.returncode == 0, shown.stderr
    assert "Usage: prefine" in shown.stdout
    assert shown.stdout.rstrip().endswith("loaded: []")


def test_version() -> None:
    shown = CliRunner().invoke(app, ["--version"])
    assert (shown.exit_code, shown.stdout) == (0, f"prefine {__version__}\n")


def test_help_lists_the_verbs_in_the_tables_order() -> None:
    shown = CliRunner().invoke(app, ["--help"]).stdout.split("Commands")[1]
    places = [shown.index(f"│ {verb.split()[0]} ") for verb in VERBS]
    assert places == sorted(places)


def nothing() -> None:
    """Stands for a verb's function in the test below."""


def test_verbs_of_two_words_are_grouped_and_keep_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        app_module, "VERBS", dict.fromkeys(("first", "data check", "data show", "last"), f"{__name__}:nothing")
    )
    built = create_app()
    shown = CliRunner().invoke(built, ["--help"]).stdout.split("Commands")[1]
    assert shown.index("first") < shown.index("data") < shown.index("last")
    assert CliRunner().invoke(built, ["data", "check"]).exit_code == 0
    assert "show" in CliRunner().invoke(built, ["data", "--help"]).stdout


@pytest.fixture
def verb_that(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    def install(failure: BaseException) -> None:
        one_verb = typer.Typer(pretty_exceptions_enable=False)

        @one_verb.command()
        def fail() -> None:
            raise failure

        monkeypatch.setattr(app_module, "app", one_verb)

    return install


def left_with(capsys: pytest.CaptureFixture[str]) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as leaving:
        main([])
    shown = capsys.readouterr()
    return leaving.value.code, shown.out, shown.err


def test_an_error_for_the_user_is_one_line_and_exit_code_2(
    verb_that: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    verb_that(DataError("pairs.jsonl is\n   empty", "Name another file."))
    assert left_with(capsys) == (2, "", "error: pairs.jsonl is empty. Name another file.\n")


def test_a_file_without_permission_is_one_line(
    verb_that: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    verb_that(PermissionError(13, "Permission denied", "/home/alice/x"))
    said = "error: /home/alice/x cannot be opened: Permission denied. Check its permissions.\n"
    assert left_with(capsys) == (2, "", said)


def test_ctrl_c_is_130_with_a_word(
    verb_that: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    verb_that(KeyboardInterrupt())
    assert left_with(capsys) == (130, "", "interrupted\n")


def test_a_stopped_run_is_130_and_its_last_line_is_the_command_that_goes_on(
    verb_that: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    verb_that(Stopped("stopped after step 3 of 9, all saved"))
    assert left_with(capsys) == (130, "", "stopped after step 3 of 9, all saved; to resume: prefine --resume\n")
    assert app_module._resuming(["dpo", "my recipe.yaml", "--resume"]) == "prefine dpo 'my recipe.yaml' --resume"
    assert app_module._resuming(["sft", "a.yaml", "--set", "lora=null"]).endswith("--set lora=null --resume")


def test_success_is_0(capsys: pytest.CaptureFixture[str], verb_that: Callable[[BaseException], None]) -> None:
    verb_that(typer.Exit())
    assert left_with(capsys) == (0, "", "")


def test_a_bug_shows_its_traceback() -> None:
    code = """
from prefine.cli import app as module
import typer
module.app = typer.Typer(pretty_exceptions_enable=False)
@module.app.command()
def fail():
    secret = "x"
    raise ZeroDivisionError("a bug")
module.main([])
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert shown.returncode == 1
    assert shown.stderr.startswith("Traceback (most recent call last):")
    assert shown.stderr.endswith("ZeroDivisionError: a bug\n")


@pytest.mark.parametrize("arguments", [["no-such-verb"], ["doctor", "--no-such-option"]])
def test_a_wrong_command_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(arguments)
    assert leaving.value.code == 2
    assert "no-such" in capsys.readouterr().err


def test_python_m_prefine_is_the_same_command() -> None:
    shown = subprocess.run([sys.executable, "-m", "prefine", "--version"], capture_output=True, text=True, check=False)
    assert shown.stdout == f"prefine {__version__}\n"
