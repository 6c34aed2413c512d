"""The command line: the table of verbs, and the only place that turns errors into exit codes.

Exit codes: 0 success, 2 an error that the user can correct, 130 interrupted, 141 the output is closed (as by `| head`),
1 a bug (with its traceback), 3 a candidate that fails its gate (`prefine evaluate`, `prefine run`).

`prefine --help` must be fast, so a verb's module imports only typer and the standard library at its top; torch and the
rest are imported inside the verb.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from prefine import __version__
from prefine.cli.output import OutputError, guarded_output, say_error
from prefine.errors import Paused, PrefineError, Stopped
from prefine.terminal import echo, visible

# typer has a copy of click, whose names are private.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]

# Verb -> its function. The help lists the verbs in this order.
VERBS = {
    "init": "prefine.cli.init:init",
    "doctor": "prefine.cli.doctor:doctor",
    "run": "prefine.cli.run:run",
    "recipe": "prefine.cli.recipe:recipe",
    "plan": "prefine.cli.plan:plan",
    "data check": "prefine.cli.data:check",
    "data audit": "prefine.cli.data_audit:audit",
    "sft": "prefine.cli.sft:sft",
    "dpo": "prefine.cli.dpo:dpo",
    "kto": "prefine.cli.kto:kto",
    "orpo": "prefine.cli.orpo:orpo",
    "reward train": "prefine.cli.reward:train",
    "reward check": "prefine.cli.reward:check",
    "reward merge": "prefine.cli.reward:merge",
    "ppo": "prefine.cli.ppo:ppo",
    "score": "prefine.cli.score:score",
    "evaluate": "prefine.cli.evaluate:evaluate",
    "judge": "prefine.cli.judge:judge",
    "generate": "prefine.cli.generate:generate",
    "chat": "prefine.cli.chat:chat",
    "export write": "prefine.cli.export:write",
    "export verify": "prefine.cli.export:verify",
    "serve": "prefine.cli.serve:serve",
    "report": "prefine.cli.report:report",
    "watch": "prefine.cli.watch:watch",
    "runs list": "prefine.cli.runs:list_",
    "runs compare": "prefine.cli.runs:compare",
    "runs tag": "prefine.cli.runs:tag",
    "runs remove": "prefine.cli.runs:remove",
    "runs reproduce": "prefine.cli.runs:reproduce",
    "feedback export": "prefine.cli.feedback:export",
    "annotate compare": "prefine.cli.annotate:compare",
    "annotate open": "prefine.cli.annotate:open_",
    "annotate import": "prefine.cli.annotate:import_",
    "annotate export": "prefine.cli.annotate:export",
    "annotate status": "prefine.cli.annotate:status",
    "evals write": "prefine.cli.evals:write",
    "evals read": "prefine.cli.evals:read",
    "cache list": "prefine.cli.cache:show",
    "cache clean": "prefine.cli.cache:clean",
}
_LONGEST_QUOTE = 60
# First words of verbs that have two.
GROUPS = {
    "data": "Inspect data before training on it.",
    "reward": "Train a reward model, and check whether it is fit for PPO.",
    "export": "Export a model to a format of other programs, and check that it equals the trained model.",
    "feedback": "Use the thumbs and corrections that people gave at the server.",
    "annotate": "Let people judge answers on a local page, and train on their votes.",
    "evals": "Exchange evaluations with OpenAI Evals and Promptfoo.",
    "cache": "Show and clear the cache.",
    "runs": "List, compare, tag, remove and reproduce runs.",
}
# The default verb of a group, if the second word is not one of its verbs: `prefine reward RECIPE` trains.
DEFAULTS = {"reward": "train", "export": "write", "cache": "list", "runs": "list"}
# Groups whose default verb needs no argument, so the group's name alone is a command.
COMPLETE = {"cache", "runs"}


class _VerbGroup(TyperGroup):
    """Lists the verbs in VERBS' order; typer would put those of two words before or after all others."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        return list(dict.fromkeys(verb.split()[0] for verb in VERBS))

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        """As typer's, with control characters of quoted options and commands escaped."""
        with _visible_usage_errors():
            return super().invoke(ctx)

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        """As typer's."""
        with _visible_usage_errors():
            return super().make_context(*arguments, **options)


@contextmanager
def _visible_usage_errors() -> Iterator[None]:
    """Context in which control characters in usage errors are escaped."""
    try:
        yield
    except Exception as error:
        # Some releases of typer have a copy of click, others use the package.
        if hasattr(error, "exit_code") and isinstance(getattr(error, "message", None), str):
            error.message = visible(error.message)  # type: ignore[attr-defined]
        raise


class _VisibleLine(logging.Formatter):
    """A logged line, with control characters escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        return visible(super().format(record))


class _Verb(TyperCommand):
    """A verb whose path options and arguments may begin with ~."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        from prefine.paths import expanded

        rest: list[str] = super().parse_args(ctx, args)
        for name, value in ctx.params.items():
            if isinstance(value, Path):
                ctx.params[name] = Path(expanded(str(value)))
            elif isinstance(value, list | tuple) and any(isinstance(each, Path) for each in value):
                ctx.params[name] = [Path(expanded(str(each))) for each in value]
        return rest


class _DefaultingGroup(TyperGroup):
    """A group with a default verb."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        default = DEFAULTS.get(self.name or "")
        if default is not None and not args and self.name in COMPLETE:
            args = [default]
        if default is not None and args and args[0] not in (*self.commands, *self.get_help_option_names(ctx)):
            mistyped = get_close_matches(args[0], self.commands) and not Path(args[0]).exists()
            args = args if mistyped else [default, *args]
        return super().parse_args(ctx, args)


def create_app() -> typer.Typer:
    """A typer application with every verb of VERBS."""
    # Typer's tracebacks hide frames and can show values of locals; a bug report needs the real one.
    app = typer.Typer(cls=_VerbGroup, no_args_is_help=True, pretty_exceptions_enable=False)
    app.callback()(_about)
    groups: dict[str, typer.Typer] = {}
    for verb, target in VERBS.items():
        module, function = target.split(":")
        *group, name = verb.split()
        parent = app
        for word in group:
            if word not in groups:
                groups[word] = typer.Typer(cls=_DefaultingGroup, no_args_is_help=True, help=GROUPS[word])
                app.add_typer(groups[word], name=word)
            parent = groups[word]
        parent.command(name, cls=_Verb)(getattr(import_module(module), function))
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        echo(f"prefine {__version__}")
        raise typer.Exit


def _about(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Refine a language model from human preferences, end to end, on your own hardware."""


app = create_app()


@cache
def _command(application: typer.Typer) -> Any:
    """An application as a command of click. Typer would build that of every verb anew at each call."""
    return typer.main.get_command(application)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line on `arguments` (default: sys.argv); always raises SystemExit."""
    _show_log()
    with _signals_interrupt():
        try:
            with guarded_output():
                code = _command(app)(arguments, prog_name="prefine", standalone_mode=False)
            sys.exit(code if isinstance(code, int) else 0)
        except _UsageError as error:
            _refuse_usage(error)
        except OutputError as error:
            if error.closed_by_reader:
                sys.exit(128 + 13)  # as of a program that SIGPIPE ends
            _end(2, f"error: {error}. Free some space there, or write to another place.")
        except PrefineError as error:
            _end(2, "error: " + "\n".join(error.lines))
        except Paused as paused:
            _end(130, f"{paused}; the same command continues")
        except Stopped as stopped:
            _end(130, f"{stopped}; to resume: {_resuming(sys.argv[1:] if arguments is None else arguments)}")
        except typer.Abort:  # Ctrl-C or the end of the input at a question, whose line is not ended
            echo("")
            _end(130, "interrupted")
        except KeyboardInterrupt:
            _end(130, "interrupted")
        except SystemExit as leaving:
            if leaving.code == 130:  # typer's reaction to Ctrl-C, without a message
                _end(130, "interrupted")
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
                _end(2, f"error: the name {str(error.filename)[:40]}… is too long. Choose a shorter one.")
            if isinstance(error, PermissionError) and error.filename is not None:
                _end(2, f"error: {error.filename} cannot be opened: {error.strerror}. Check its permissions.")
            from prefine.training.loop.launch import launched

            if launched():  # a bug in every process: one traceback
                _end(1, traceback.format_exc())
            raise


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Context in which SIGTERM and SIGHUP act as Ctrl-C, so that a command cleans up and reports how it ended.

    Ignored signals (SIGHUP under nohup) stay ignored.
    """
    before: dict[int, Any] = {}
    with suppress(ValueError):  # not the main thread: the caller handles signals
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _refuse_usage(error: Any) -> NoReturn:
    """Report a usage error in one line; a group without a verb shows its help."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        sys.exit(2)
    command = error.ctx.command_path if error.ctx is not None else "prefine"
    rule = re.sub(r"\s+", " ", error.format_message()).rstrip(". ")
    quote = _unquoted(error)
    rule = rule.replace(": ", f": {quote}: ", 1) if quote else rule
    _end(2, f"error: {rule}. See {command} --help.")


def _unquoted(error: Any) -> str:
    """The refused value in quotes, shortened; "" if typer's message has it."""
    problems = getattr(error.__cause__, "errors", None)
    value = str(problems()[0].get("input", "")) if callable(problems) else ""
    if problems is None or repr(value) in error.format_message():
        return ""
    return repr(value if len(value) <= _LONGEST_QUOTE else value[: _LONGEST_QUOTE - 1] + "…")


def _end(code: int, text: str) -> NoReturn:
    """Exit with one message; with several processes, from the first one that ends."""
    from prefine.training.loop.launch import first_to_say, launched

    if not launched():
        say_error(visible(text))
        sys.exit(code)
    if first_to_say():
        say_error(visible(text))
    # Closing the process group may wait for ever for processes that have ended.
    with suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _show_log() -> None:
    """Show prefine's log messages (a slow conversion, a fallback) on stderr, as plain lines."""
    logging.getLogger("prefine").setLevel(logging.INFO)
    if logging.lastResort is not None:
        logging.lastResort.setLevel(logging.INFO)
        logging.lastResort.setFormatter(_VisibleLine())


def _resuming(arguments: Sequence[str]) -> str:
    """The command that resumes a stopped run, for a shell."""
    from prefine.training.loop.launch import launch_command

    return launch_command([*arguments, *([] if "--resume" in arguments else ["--resume"])])
