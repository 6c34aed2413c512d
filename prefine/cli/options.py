"""Options and arguments that several verbs share."""

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
    typer.Argument(
        metavar="RECIPE",
        help="A recipe: a YAML file with the model, the data and the settings of a run.",
        show_default=False,
    ),
]
Overrides = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a value of the recipe: --set data.train=mine.jsonl. Repeatable.",
        default_factory=list,
        show_default=False,
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Resume the run in the recipe's run folder.")]
# The largest seed of torch and of a recipe; larger numbers of tokens or rows are typing errors.
LARGEST_SEED = 2**63 - 1
LARGEST_COUNT = 2**31 - 1
# Names of the API's arguments as options, for error messages.
MODEL_OPTIONS = {"chat_template": "--chat-template"}

ResumeRows = Annotated[bool, typer.Option("--resume", help="Continue FILE.partial of an interrupted command.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Temperature = Annotated[float, typer.Option(help="0 always takes the likeliest token.")]
TopK = Annotated[
    int, typer.Option(min=0, max=LARGEST_COUNT, help="Sample from this many of the likeliest tokens; 0: all.")
]
TopP = Annotated[float, typer.Option(help="Sample from the likeliest tokens with this total probability.")]
Samples = Annotated[int, typer.Option(min=1, max=LARGEST_COUNT, help="Answers to each prompt.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, max=LARGEST_COUNT, help="The longest answer, in tokens.")]
Slots = Annotated[int, typer.Option(min=1, max=4096, help="Answers generated at once; memory use grows with it.")]
ModelTemplate = Annotated[
    str | None, typer.Option(help="For a tokenizer without a chat template: plain, or a Jinja file.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
Delimiter = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="Delimiter of .csv and .tsv files: ',', ';', '|' or tab; default: detected."),
]
Encoding = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Encoding of text files, such as cp1252; default: UTF-8, or by a byte order mark."
    ),
]

Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        metavar="NAME=COLUMN",
        help="Column of the file for a name of the format: prompt=question. Repeatable. NAME= ignores a column.",
    ),
]


def text_form(delimiter: str | None, encoding: str | None) -> TextForm:
    """Delimiter and encoding of text files, from the two options.

    Raises:
        RecipeError: one of them has an invalid value.
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
    """Context in which a value that Sampling refuses is reported as an error of its option.

    Raises:
        RecipeError: it names the option, the value and the rule.
    """
    from prefine.errors import RecipeError

    try:
        yield
    except ValueError as error:
        option, _, rest = str(error).partition(" ")
        raise RecipeError(f"--{option.replace('_', '-')} {rest}", f"See prefine {verb} --help.") from None
