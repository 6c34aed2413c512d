"""prefine score."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prefine.cli.options import (
    MODEL_OPTIONS,
    Columns,
    Delimiter,
    Device,
    Encoding,
    ModelTemplate,
    ResumeRows,
    text_form,
)
from prefine.terminal import echo


def score(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A reward run (runs/NAME), a folder, or a hub id.", show_default=False),
    ],
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE", help="Rows with prompt and completion (or response), chats, or pairs.", show_default=False
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write rows to this file, by way of FILE.partial; default: standard output."),
    ] = None,
    quarantine: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write rows that cannot be scored to this file; default: only count them."),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of a Hugging Face dataset; files are read completely.")] = "train",
    chat_template: ModelTemplate = None,
    delimiter: Delimiter = None,
    encoding: Encoding = None,
    column: Columns = None,
    device: Device = "auto",
    resume: ResumeRows = False,
) -> None:
    """Score answers: one JSON line for each row, with its score, in the order of the input.

    A row with one answer gets `score`, a pair `score_of_chosen` and `score_of_rejected`; with several heads also their
    disagreement, a standard deviation. Scores of prefine's own models are centred: 0 is an average held-out answer.
    """
    from prefine import api
    from prefine.cli.progress import counting
    from prefine.cli.row_output import row_output, write_rows
    from prefine.errors import about
    from prefine.evaluation.score_rows import ScoredRows
    from prefine.generation.row_settings import recorded_dtype, settings_of_scores, source_settings
    from prefine.row_rules import RowRules, columns_named

    text, rules = text_form(delimiter, encoding), RowRules(columns_named(column or ()))
    with row_output(out, quarantine, sources, resume) as (file, refused), counting("scoring") as progress:
        # First, so that a missing file is reported before a model is loaded.
        rows = ScoredRows(sources, refused, split, text, rules)
        with about(None, MODEL_OPTIONS):
            named = api.load(model, device=device, dtype=recorded_dtype(file), chat_template=chat_template)
            reward = named.reward_model
        if file is not None:
            rows.begin(file, settings_of_scores(reward) | source_settings(sources, split, text, rules, quarantine))
        write_rows(rows, rows.blocks(reward), file, progress)
    for line in rows.summary(reward):
        echo(line, err=True)
