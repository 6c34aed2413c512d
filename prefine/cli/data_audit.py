"""`prefine data audit`: is this data worth training on?"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefine.cli.data import Kind
from prefine.cli.options import LARGEST_COUNT, AsJson, Columns, Delimiter, Encoding, text_form
from prefine.terminal import echo

if TYPE_CHECKING:
    from rich.console import Console

    from prefine.data.audit.cleaning import CleanedCopy
    from prefine.data.audit.findings import AuditFinding
    from prefine.data.audit.run import Audit, AuditSettings
    from prefine.data.audit.token_lengths import TokenCount

_CONTEXT = 1024
_STYLES = {"high": "bold red", "medium": "yellow", "low": "cyan"}
_EXAMPLES_SHOWN = 3


class Contradictions(StrEnum):
    """Which rows of contradictory judgements a cleaned copy leaves out."""

    KEEP = "keep"
    MAJORITY = "majority"
    DROP = "drop"


def audit(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="FILE", help="Files, folders, dataset ids or sample:…", show_default=False),
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write audit.html and audit.json to this folder.")
    ] = None,
    fix: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT",
            help="Write a copy without exact duplicates, pairs of equal answers and leaks, and OUT.dropped.jsonl with "
            "every row left out.",
        ),
    ] = None,
    contradictions: Annotated[
        Contradictions,
        typer.Option(help="With --fix: keep contradictory rows, the majority of each item, or drop all of them."),
    ] = Contradictions.KEEP,
    near: Annotated[
        bool, typer.Option("--near", help="With --fix: leave out near duplicates and near leaks, too.")
    ] = False,
    heldout: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE", help="Held-out data; looks for its prompts in FILE. Repeatable.", show_default=False
        ),
    ] = None,
    kind: Annotated[
        Kind, typer.Option(help="The kind of record that rows are read as; auto looks at the columns.")
    ] = Kind.AUTO,
    model: Annotated[
        str | None,
        typer.Option(
            help="Count tokens with this model's tokenizer and chat template: a folder, a run, a hub id or embedded:…; "
            "without it they are estimated."
        ),
    ] = None,
    max_length_tokens: Annotated[
        int,
        typer.Option(
            min=8, max=LARGEST_COUNT, help="As data.max_length_tokens in a recipe: prompt and answer together."
        ),
    ] = _CONTEXT,
    split: Annotated[str, typer.Option(help="Split of a Hugging Face dataset; files are read completely.")] = "train",
    delimiter: Delimiter = None,
    encoding: Encoding = None,
    column: Columns = None,
    as_json: AsJson = False,
) -> None:
    """Is this data worth training on? Duplicates, contradictions, leaks, shallow cues, wrong labels, personal data."""
    from prefine.data.audit.run import AuditSettings
    from prefine.row_rules import RowRules, columns_named

    settings = AuditSettings(
        sources,
        None if kind is Kind.AUTO else kind.value,
        heldout or (),
        split,
        text_form(delimiter, encoding),
        RowRules(columns_named(column or ())),
        max_length_tokens,
        _counter(model),
        model or "",
        contradictions.value,
        near,
    )
    _require_outputs(settings, out, fix)
    _audit(settings, out, fix, as_json)


def _audit(settings: AuditSettings, out: Path | None, fix: Path | None, as_json: bool) -> None:
    import json

    from rich.console import Console

    from prefine.cli.progress import counting
    from prefine.data.audit.cleaning import write_cleaned
    from prefine.data.audit.result_file import audit_json
    from prefine.data.audit.run import audit_sources
    from prefine.report.audit.page import write_audit

    with counting("auditing") as progress:
        found = audit_sources(settings, progress=progress)
    held = audit_json(found)
    page = write_audit(held, out) if out is not None else None
    copy = write_cleaned(found, fix) if fix is not None else None
    if as_json:
        written = {"page": str(page) if page else None, "fixed": _copy_json(copy) if copy else None}
        echo(json.dumps({**held, **{name: value for name, value in written.items() if value is not None}}, indent=2))
    else:
        _print(Console(highlight=False), found, page, copy)


def _counter(model: str | None) -> TokenCount | None:
    """Counts the tokens of records with a model's tokenizer."""
    if model is None:
        return None
    from prefine.data.tokens.fitting import whole_row
    from prefine.errors import TemplateError, about
    from prefine.models.loading.load import load_tokenizer
    from prefine.models.loading.location import locate_model
    from prefine.recipe.sections import named_model
    from prefine.records import Record

    with about("--model"):
        template = load_tokenizer(locate_model(model), named_model(model))

    def count(record: Record) -> int | None:
        try:
            tree = whole_row(template, record).tree
        except TemplateError:
            return None
        return len(tree.prompt) + max(map(len, tree.answers), default=0)

    return count


def _require_outputs(settings: AuditSettings, out: Path | None, fix: Path | None) -> None:
    """Check before any work that everything can be written and no source is overwritten."""
    from prefine.cli.row_output import require_apart
    from prefine.data.audit.cleaning import dropped_path, parts_to_copy
    from prefine.errors import RecipeError
    from prefine.report.audit.page import JSON_NAME, PAGE_NAME, require_audit_folder
    from prefine.runs.atomic import require_writable

    read = [*settings.sources, *settings.heldout]
    if out is not None:
        require_apart([("--out", out / JSON_NAME), ("--out", out / PAGE_NAME)], read)
        require_audit_folder(out)
        require_writable(out / PAGE_NAME, folder_is_made=True)
    if fix is None:
        chosen = settings.contradictions != "keep" or settings.near
        if chosen:
            option = "--near" if settings.near else f"--contradictions {settings.contradictions}"
            raise RecipeError(f"{option} only changes what --fix leaves out", "Add --fix OUT, or remove it.")
        return
    if not fix.name:
        raise RecipeError(f"--fix is {str(fix)!r}, which names no file", "Name a file.")
    require_apart([("--fix", fix), ("--fix", dropped_path(fix))], read)
    parts_to_copy(fix, settings)
    for path in (fix, dropped_path(fix)):
        require_writable(path)
        if path.exists() and path.stat().st_size:
            raise RecipeError(f"--fix: {path} exists", "Name another file, or move that one away.")


def _copy_json(copy: CleanedCopy) -> dict[str, object]:
    return {
        "out": str(copy.out),
        "dropped": str(copy.dropped_file),
        "rows": copy.rows,
        "kept": copy.kept,
        "reasons": dict(copy.reasons.most_common()),
    }


def _print(console: Console, found: Audit, page: Path | None, copy: CleanedCopy | None) -> None:
    from rich.text import Text

    from prefine.data.reading.rows import printable
    from prefine.formatting import plural

    def say(line: str, style: str = "") -> None:
        console.print(Text(printable(line), style=style), soft_wrap=True)

    say(f"{', '.join(found.settings.sources)}: {found.records:,} {found.kind} in {plural(found.rows, 'row')}", "bold")
    for finding in found.findings:
        if finding.severity.value in _STYLES:
            _print_finding(console, finding)
    for severity, title in (("none", "nothing found"), ("unchecked", "not checked")):
        names = [each.title for each in found.findings if each.severity.value == severity]
        if names:
            say(f"{title}: {', '.join(names)}", "dim")
    say("")
    if page is not None:
        say(f"the page: {page}")
    if copy is not None:
        reasons = "; ".join(f"{why}: {count:,}" for why, count in copy.reasons.most_common())
        say(f"{copy.out}: {copy.kept:,} of {plural(copy.rows, 'row')}; {reasons or 'no row was left out'}")
        say(f"rows left out: {copy.dropped_file}")


def _print_finding(console: Console, finding: AuditFinding) -> None:
    from rich.text import Text

    from prefine.data.audit.findings import plain
    from prefine.data.reading.rows import printable

    severity = finding.severity.value
    head = Text(f"\n{severity.upper():6} ", style=_STYLES[severity])
    head.append(finding.title, style="bold")
    console.print(head, soft_wrap=True)
    lines = [plain(finding.says)]
    if finding.figures.get("cues"):
        cues = [cue["word"] for cue in finding.figures["cues"]]
        half = len(cues) // 2
        lines.append(f"in the better answer: {', '.join(cues[:half])}; in the worse one: {', '.join(cues[half:])}")
    for example in finding.examples[:_EXAMPLES_SHOWN]:
        about = " · ".join(part for part in (example.note, example.text) if part)
        lines.append(f"{' ↔ '.join(example.places)}  {about}")
    lines += [f"→ {finding.remedy}"] if finding.remedy else []
    for line in lines:
        console.print(Text(f"       {printable(line)}"), soft_wrap=True)
