"""prefine init: a pipeline to begin with, or a recipe from another trainer's configuration."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from prefine.cli.options import Columns, Delimiter, Encoding, text_form
from prefine.errors import PrefineError
from prefine.terminal import echo

if TYPE_CHECKING:
    from prefine.advice.chooser import MethodChoice
    from prefine.advice.situation import ReadingOptions
    from prefine.data.audit.facts import DataFacts
    from prefine.foreign_recipes.settings import Moved

_MODEL = "embedded:smollm2-135m"


class InitGoal(StrEnum):
    """What the user wants of the data."""

    AUTO = "auto"
    IMITATE = "imitate"
    PREFER = "prefer"
    CONTROL = "control"


def init(
    ctx: typer.Context,
    data: Annotated[
        list[str],
        typer.Option(
            metavar="FILE",
            help="A file, a folder, a dataset id or sample:…; any kind of rows. Repeatable.",
            default_factory=list,
            show_default=False,
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The model to begin with: a folder, a run, a hub id or embedded:…", show_default=_MODEL
        ),
    ] = None,
    goal: Annotated[
        InitGoal,
        typer.Option(
            help="imitate answers (SFT), prefer what people preferred (DPO, KTO), or control the reward (PPO); auto: "
            "what fits the data."
        ),
    ] = InitGoal.AUTO,
    method: Annotated[
        str | None,
        typer.Option(help="The method, instead of the one that fits: sft, dpo, kto, …", show_default=False),
    ] = None,
    reward: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="What scores any answer: module:function, or a reward model.", show_default=False
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="The pipeline's name; its runs are in runs/NAME.", show_default="the file's name"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The file to write; an existing one is kept.", show_default="pipeline.yaml"),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing.")] = False,
    split: Annotated[str, typer.Option(help="Split of a Hugging Face dataset; files are read completely.")] = "train",
    delimiter: Delimiter = None,
    encoding: Encoding = None,
    column: Columns = None,
    from_trl: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="TRL: a training script, which is not run, or a YAML.", show_default=False),
    ] = None,
    from_llamafactory: Annotated[
        Path | None, typer.Option(metavar="FILE", help="LLaMA-Factory: a YAML or JSON file.", show_default=False)
    ] = None,
    from_axolotl: Annotated[
        Path | None, typer.Option(metavar="FILE", help="axolotl: a YAML file.", show_default=False)
    ] = None,
) -> None:
    """Write a commented pipeline for your data and machine, or move a configuration of TRL, LLaMA-Factory or axolotl
    to a recipe.
    """
    given = {"--from-trl": from_trl, "--from-llamafactory": from_llamafactory, "--from-axolotl": from_axolotl}
    foreign = {option: path for option, path in given.items() if path is not None}
    if foreign:
        _require_alone(list(foreign), ctx)
        (option, path), *_ = foreign.items()
        _move(option, path, method, out)
        return
    options = _reading(split, delimiter, encoding, column or ())
    out = out or Path("pipeline.yaml")
    _require_new(out)
    if not yes and is_terminal():
        data, model, goal = _ask(data, model, goal, method or reward)
    if not data:
        raise PrefineError(
            "--data is missing", "Name your data, or prefine's own: --data sample:support_desk/preferences."
        )
    _write_pipeline(data, model or _MODEL, goal, method, reward, name, out, options)


def _reading(split: str, delimiter: str | None, encoding: str | None, column: Sequence[str]) -> ReadingOptions:
    from prefine.advice.situation import ReadingOptions
    from prefine.row_rules import columns_named

    return ReadingOptions(columns_named(column), split, text_form(delimiter, encoding))


def is_terminal() -> bool:
    """Whether somebody is there to answer."""
    return sys.stdin.isatty() and sys.stdout.isatty()


_OF_A_MOVE = ("method", "out", "yes", "from_trl", "from_llamafactory", "from_axolotl")


def _require_alone(options: list[str], ctx: typer.Context) -> None:
    """Refuse what has no effect besides another trainer's file."""
    if len(options) > 1:
        raise PrefineError(f"{' and '.join(options)} are given", "Move one file at a time.")
    given = [
        option.opts[0]
        for option in ctx.command.params
        if option.name not in _OF_A_MOVE
        and (source := ctx.get_parameter_source(option.name or "")) is not None
        and source.name == "COMMANDLINE"
    ]
    if given:
        raise PrefineError(
            f"{', '.join(given)} {'have' if given[1:] else 'has'} no effect with {options[0]}, whose file says it",
            "Leave it out, and change the recipe.",
        )


def _move(option: str, path: Path, method: str | None, out: Path | None) -> None:
    from prefine.foreign_recipes.axolotl import from_axolotl
    from prefine.foreign_recipes.llama_factory import from_llama_factory
    from prefine.foreign_recipes.text import recipe_text
    from prefine.foreign_recipes.trl import from_trl

    readers: dict[str, Callable[[Path, str | None], Moved]] = {
        "--from-trl": from_trl,
        "--from-llamafactory": from_llama_factory,
        "--from-axolotl": from_axolotl,
    }
    moved = readers[option](path, method)
    file = out or Path(f"{moved.configuration.stage}.yaml")
    _write(file, recipe_text(moved, file))
    echo(f"{file}: {len(moved.fields)} fields from {path}. Each has a comment that says where it is from.")
    if moved.left:
        echo("Without a counterpart:")
        for left in moved.left:
            echo(f"  {left.name}{f': {left.value}' if left.value else ''}: {left.reason}.")
    for sentence in moved.to_do:
        echo(f"To do: {sentence}")
    echo(f"Next: {file.read_text('utf-8').splitlines()[0].removeprefix('# ')}")


def _ask(
    data: list[str], model: str | None, goal: InitGoal, chosen: str | None
) -> tuple[list[str], str | None, InitGoal]:
    """Ask for what no option says; what cannot be used is asked for again."""
    if not data:
        data = _asked("Data (files, folders or dataset ids, with commas between them)", _sources_named)
    if goal is InitGoal.AUTO and chosen is None:
        for each, meaning in _GOALS.items():
            echo(f"  {each.value:8} {meaning}")
        goal = _asked("Goal", _goal_named, InitGoal.AUTO.value)
    if model is None:
        model = _asked("Model to begin with (a folder, a run, a hub id or embedded:…)", _model_named, _MODEL)
    return data, model, goal


_GOALS = {
    InitGoal.AUTO: "what fits the data",
    InitGoal.IMITATE: "answers are imitated (SFT)",
    InitGoal.PREFER: "the answers that people preferred are made likelier (DPO, KTO)",
    InitGoal.CONTROL: "a reward is raised (reward model and PPO)",
}
T = TypeVar("T")


def _asked(question: str, read: Callable[[str], T], default: str | None = None) -> T:
    """The answer to a question, asked until it can be read."""
    while True:
        answer: str = typer.prompt(question, default=default)
        try:
            return read(answer.strip())
        except PrefineError as error:
            for line in error.lines:
                echo(f"  {line}")


def _sources_named(answer: str) -> list[str]:
    from prefine.data.reading.source_names import source_names
    from prefine.data.reading.sources import locate
    from prefine.paths import is_there

    names = [answer] if is_there(Path(answer)) else [part.strip() for part in answer.split(",") if part.strip()]
    if not names:
        raise PrefineError("No data are named", "Name a file, or prefine's own: sample:support_desk/preferences.")
    for name in source_names(names):
        locate(name)
    return names


def _model_named(answer: str) -> str:
    from prefine.models.loading.location import locate_model
    from prefine.recipe.sections import named_model

    locate_model(named_model(answer).name)
    return answer


def _goal_named(answer: str) -> InitGoal:
    words = [each.value for each in InitGoal]
    if answer.lower() not in words:
        raise PrefineError(f"There is no goal {answer!r:.60}", f"The goals are {', '.join(words)}.")
    return InitGoal(answer.lower())


def _write_pipeline(
    data: list[str],
    model: str,
    goal: InitGoal,
    method: str | None,
    reward: str | None,
    name: str | None,
    out: Path,
    options: ReadingOptions,
) -> None:
    from prefine.advice.chooser import choose
    from prefine.advice.looking import look
    from prefine.advice.machine import machine_sentences
    from prefine.advice.memory import context_of, fitted
    from prefine.advice.starting import starting_pipeline
    from prefine.recipe.pipeline import name_of_file
    from prefine.recipe.registry import RECIPES

    name = name or name_of_file(out)
    situation = look(data, reward, _say_facts, options)
    choice = choose(situation, RECIPES, goal=goal.value, asked=method, context=context_of(model))
    start = starting_pipeline(name, model, choice, situation, [])
    changes, needs = fitted(start.pipeline)
    start = starting_pipeline(name, model, choice, situation, [*machine_sentences(), *needs], changes)
    _write(out, start.text)
    _say_choice(choice)
    for sentence in needs:
        echo(sentence)
    echo(f"Written: {out}, with the stages {', '.join(start.pipeline.stages)}.")
    echo(f"Next: prefine plan {out}   # time, memory, disk; then")
    echo(f"      prefine run {out}")


def _say_facts(source: str, facts: DataFacts) -> None:
    more = "" if facts.complete else " (the first ones; there are more)"
    refused = f", {facts.quarantined:,} rows that cannot be used" if facts.quarantined else ""
    longest = f"the longest has about {facts.longest_tokens:,} tokens"
    echo(f"{source}: {facts.records:,} {facts.kind}{more}{refused}; {longest}.")


def _say_choice(choice: MethodChoice) -> None:
    for reason in choice.reasons:
        echo(reason)
    for warning in choice.warnings:
        echo(f"warning: {warning}")
    for other, why in choice.others:
        echo(f"Instead: --method {other} {why}.")


def _require_new(path: Path) -> None:
    if path.exists() or path.is_symlink():
        raise PrefineError(f"--out {path} exists", "Name another file, or remove this one.")


def _write(path: Path, text: str) -> None:
    from prefine.runs.atomic import require_writable, write_text

    _require_new(path)
    require_writable(path)
    write_text(path, text)
