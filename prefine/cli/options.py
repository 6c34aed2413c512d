"""Options and arguments that several verbs share, so that each is spelled and explained once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from prefine.text_form import TextForm

RecipePath = Annotated[
    Path,
    typer.Argument(metavar="RECIPE", help="A recipe: a YAML file that says what to train on what.", show_default=False),
]
Overrides = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one value of the recipe, as in --set data.train=mine.jsonl; may be repeated.",
        default_factory=list,
        show_default=False,
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in the recipe's run directory.")]
# A seed of torch and of a recipe; more tokens or rows than this are a slip of the keyboard.
LARGEST_SEED = 2**63 - 1
LARGEST_COUNT = 2**31 - 1
# What arguments of the API are called as options, for errors about them.
MODEL_OPTIONS = {"chat_template": "--chat-template"}

ResumeRows = Annotated[
    bool, typer.Option("--resume", help="Go on with FILE.partial, which an interrupted command has left.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")]
Temperature = Annotated[float, typer.Option(help="0 always takes the likeliest token.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
Delimiter = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT", help="Between the cells of .csv and .tsv files: ',', ';', '|' or tab; else found out."
    ),
]
Encoding = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Of text files, as in cp1252; else UTF-8, or what a byte order mark says."),
]

Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        metavar="NAME=COLUMN",
        help="The file's column by the name of a format, as in prompt=question; may be repeated. NAME= ignores one.",
    ),
]


def text_form(delimiter: str | None, encoding: str | None) -> TextForm:
    """How text files are written, by the two options.

    Raises:
        RecipeError: one of them has a value that it cannot have.
    """
    from prefine.errors import RecipeError
    from prefine.text_form import TextForm, delimiter_named, encoding_named

    found = {"delimiter": delimiter, "encoding": encoding}
    for name, check in (("delimiter", delimiter_named), ("encoding", encoding_named)):
        value = found[name]
        try:
            found[name] = None if value is None else check(value)
        except ValueError as error:
            rule, _, remedy = str(error).partition("; ")
            raise RecipeError(f"--{name} is {value!r:.40}, which {rule}", f"{remedy.capitalize()}.") from None
    return TextForm(**found)


@contextmanager
def sampling_options(verb: str) -> Iterator[None]:
    """Inside, a value that a Sampling refuses is an error of the option that it came from.

    Raises:
        RecipeError: it names the option, the value and the rule.
    """
    from prefine.errors import RecipeError

    try:
        yield
    except ValueError as error:
        option, _, rest = str(error).partition(" ")
        raise RecipeError(f"--{option.replace('_', '-')} {rest}", f"See prefine {verb} --help.") from None
