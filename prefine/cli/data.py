"""`prefine data check`: what a stage would read from a file, before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefine.cli.options import LARGEST_COUNT, AsJson, Columns, Delimiter, Encoding, text_form
from prefine.terminal import echo

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from prefine.data.inspection import AnswerLengths, Inspection, TokenCounts
    from prefine.data.tokens.decoded import MarkedText
    from prefine.data.tokens.template import ChatTemplate

_EMBEDDED = "embedded:smollm2-135m"
_MAX_LENGTH = 1024
_MOST_SHOWN_CHARACTERS = 4_000


class Kind(StrEnum):
    """The kind of record that rows are read as."""

    AUTO = "auto"
    PREFERENCES = "preferences"
    VOTES = "votes"
    DEMONSTRATIONS = "demonstrations"
    PROMPTS = "prompts"


def check(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="FILE", help="Files, folders, dataset ids or sample:…", show_default=False),
    ],
    kind: Annotated[
        Kind, typer.Option(help="The kind of record that rows are read as; auto looks at the columns.")
    ] = Kind.AUTO,
    model: Annotated[
        str,
        typer.Option(
            help="Model whose tokenizer and chat template count tokens: a folder, a run, a hub id or embedded:…"
        ),
    ] = _EMBEDDED,
    split: Annotated[str, typer.Option(help="Split of a Hugging Face dataset; files are read completely.")] = "train",
    max_length_tokens: Annotated[
        int,
        typer.Option(
            min=8, max=LARGEST_COUNT, help="As data.max_length_tokens in a recipe: prompt and answer together."
        ),
    ] = _MAX_LENGTH,
    quarantine: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Write rows that cannot be used to this file.")
    ] = None,
    delimiter: Delimiter = None,
    encoding: Encoding = None,
    column: Columns = None,
    as_json: AsJson = False,
) -> None:
    """Show what a file holds: rows kept and quarantined and why, token lengths, an example with its supervised
    tokens.
    """
    import dataclasses
    import json

    from rich.console import Console

    from prefine.cli.progress import counting
    from prefine.cli.row_output import require_quarantine
    from prefine.data.inspection import NotingQuarantine, inspect_sources
    from prefine.data.reading.source_names import source_names
    from prefine.data.records.kinds import kind_of_sources
    from prefine.row_rules import RowRules, columns_named

    text, rules = text_form(delimiter, encoding), RowRules(columns_named(column or ()))
    require_quarantine(quarantine, sources)
    found = kind.value
    if kind is Kind.AUTO:
        found = kind_of_sources(source_names(sources), split=split, text=text, rules=rules)
    template, left_out = _template_of(model)
    with NotingQuarantine(quarantine) as noting, counting("reading") as progress:
        inspection = inspect_sources(
            sources,
            found,
            template=template,
            max_length=max_length_tokens,
            quarantine=noting,
            split=split,
            text=text,
            rules=rules,
            progress=progress,
        )
    if as_json:
        whole = {"model": model, "tokens_left_out": left_out, **dataclasses.asdict(inspection)}
        echo(json.dumps(whole, indent=2))
    else:
        _print(Console(highlight=False), inspection, model, left_out, quarantine)


def _template_of(model: str) -> tuple[ChatTemplate | None, str | None]:
    """The template, or why there is none: everything else can be shown without the embedded model's package."""
    from prefine.errors import ModelError, about
    from prefine.models.loading.load import load_tokenizer
    from prefine.models.loading.location import locate_model
    from prefine.recipe.sections import named_model

    try:
        with about("--model"):
            return load_tokenizer(locate_model(model), named_model(model)), None
    except ModelError as error:
        if model != _EMBEDDED:
            raise
        return None, str(error)


def _print(console: Console, inspection: Inspection, model: str, left_out: str | None, quarantine: Path | None) -> None:
    from rich.text import Text

    from prefine.data.reading.rows import printable
    from prefine.data.records.stream import remarks

    def say(line: str, style: str = "") -> None:
        console.print(Text(printable(line), style=style), soft_wrap=True)

    say(f"{', '.join(inspection.sources)}: read as {inspection.kind}", "bold")
    console.print(_rows_table(inspection))
    if inspection.set_aside:
        console.print(_quarantine_table(inspection))
        say(f"These rows are in {quarantine}." if quarantine else "Write these rows to a file with --quarantine PATH.")
    for line in remarks(inspection.counts):
        say(line, "yellow")
    if inspection.answer_lengths is not None and inspection.answer_lengths.pairs:
        for line, style in _about_lengths(inspection.answer_lengths):
            say(line, style)
    if inspection.tokens is None:
        say(f"tokens: not counted. {left_out}", "yellow")
        return
    if inspection.tokens.lengths:
        say(_tokens_title(inspection.tokens, inspection.counts["records"], model), "bold")
        console.print(_tokens_table(inspection.tokens))
    for line, style in _about_fit(inspection.tokens):
        say(line, style)
    if inspection.example is not None:
        say("")
        say("the first record that fits, as the model sees it; ⟦ ⟧ mark the tokens that are learned", "bold")
        console.print(_marked(inspection.example), soft_wrap=True)


def _table(show_header: bool = True) -> Table:
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE_HEAD, show_header=show_header)


def _rows_table(inspection: Inspection) -> Table:
    from rich.text import Text

    counts = inspection.counts
    rows = [
        ("read", counts["rows_in"], ""),
        ("quarantined", counts["quarantined"], "cannot be used"),
        *([("left out", counts["left_out"], "valid, with nothing for this kind")] if counts["left_out"] else []),
        ("kept", counts["kept"], ""),
        ("duplicates", counts["duplicates"], "left out: duplicates of an earlier row"),
        ("records", counts["records"], "what a stage gets"),
    ]
    optional = [
        ("contradictions", counts["contradictions"], "kept: they contradict an earlier row"),
        ("repeated ids", counts["duplicate_ids"], "kept: their content differs"),
        ("ties", inspection.ties, "of no use to DPO"),
    ]
    if inspection.kind == "votes":
        rows.append(("thumbs up", inspection.thumbs_up, f"{_percent(inspection.thumbs_up, counts['records'])}"))
    table = _table(show_header=False)
    table.add_column(style="cyan", no_wrap=True, min_width=14)
    table.add_column(justify="right")
    table.add_column()
    for name, number, note in [*rows, *(each for each in optional if each[1])]:
        table.add_row(Text(name), Text(f"{number:,}"), Text(note, style="dim"))
    return table


def _quarantine_table(inspection: Inspection) -> Table:
    from rich.text import Text

    from prefine.data.reading.rows import printable

    table = _table()
    table.add_column("quarantined because", overflow="fold")
    table.add_column("rows", justify="right")
    table.add_column("first at", overflow="fold")
    for each in inspection.set_aside:
        places = [*map(printable, each.places), *(["…"] if each.rows > len(each.places) else [])]
        table.add_row(Text(each.reason), Text(f"{each.rows:,}"), Text("\n".join(places)))
    return table


def _about_lengths(lengths: AnswerLengths) -> Iterator[tuple[str, str]]:
    from prefine.data.audit.length_bias import against_length

    share = _percent(lengths.chosen_longer, lengths.pairs)
    yield f"chosen is the longer answer in {lengths.chosen_longer:,} of {lengths.pairs:,} pairs ({share}).", ""
    if lengths.length_decides:
        which = "longer" if lengths.chosen_longer > lengths.rejected_longer else "shorter"
        yield (
            f"warning: people preferred the {which} answer so often that length alone nearly decides; a model can "
            f"learn length instead of quality. With DPO: {against_length()}",
            "yellow",
        )


def _tokens_title(tokens: TokenCounts, records: int, model: str) -> str:
    looked = f"{records:,} records" if tokens.looked_at == records else f"{tokens.looked_at:,} of {records:,} records"
    return f"tokens by the tokenizer of {model} ({looked})"


def _tokens_table(tokens: TokenCounts) -> Table:
    from rich.text import Text

    table = _table()
    for name in ("", "min", "median", "mean", "95 %", "max"):
        table.add_column(name, justify="right" if name else "left", style="" if name else "cyan")
    for part, lengths in tokens.lengths.items():
        numbers = (lengths.minimum, lengths.median, lengths.mean, lengths.at_95_percent, lengths.maximum)
        name = "prompt and longest answer" if part == "total" else part
        table.add_row(Text(name), *(f"{number:,.0f}" for number in numbers))
    return table


def _about_fit(tokens: TokenCounts) -> Iterator[tuple[str, str]]:
    fit = tokens.fit
    told = [
        ("cut to fit", fit.rows_cut),
        ("turns left out of them", fit.turns_dropped),
        ("user turns shortened", fit.texts_cut),
        ("assistant turns that are not learned", fit.turns_not_learned),
        ("dropped: nothing that fits is learned", fit.dropped_too_long),
        ("dropped: both answers are the same tokens", fit.dropped_identical),
    ]
    changed = "; ".join(f"{what}: {number:,}" for what, number in told if number)
    yield f"At {tokens.max_length:,} tokens (data.max_length_tokens) {changed or 'every record fits'}.", ""
    if tokens.refused:
        yield f"warning: the chat template refuses {tokens.refused:,} of them. {tokens.refusal}", "yellow"


def _marked(example: list[MarkedText]) -> Text:
    """The example with supervised tokens between marks and in green, shortened if very long."""
    from rich.text import Text

    from prefine.data.reading.rows import printable

    shown = Text()
    for piece in example:
        text = piece.text
        if len(text) > _MOST_SHOWN_CHARACTERS:
            half = _MOST_SHOWN_CHARACTERS // 2
            text = f"{text[:half]}\n… {len(text) - 2 * half:,} characters …\n{text[-half:]}"
        text = "\n".join(map(printable, text.split("\n")))
        shown.append(f"⟦{text}⟧" if piece.supervised else text, style="green" if piece.supervised else "dim")
    return shown


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "none"
