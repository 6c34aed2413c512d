"""prefine generate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prefine.cli.options import (
    LARGEST_SEED,
    MODEL_OPTIONS,
    Columns,
    Delimiter,
    Device,
    Encoding,
    MaxNewTokens,
    ModelTemplate,
    ResumeRows,
    Samples,
    Slots,
    Temperature,
    TopK,
    TopP,
    sampling_options,
    text_form,
)
from prefine.terminal import echo


def generate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run (runs/NAME), a folder, a hub id or embedded:…")],
    prompts: Annotated[
        list[str], typer.Option(metavar="FILE", help="Rows with a prompt. Repeatable.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write rows to this file, by way of FILE.partial; default: standard output."),
    ] = None,
    quarantine: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write rows that cannot be answered to this file; default: only count them."),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of a Hugging Face dataset; files are read completely.")] = "train",
    samples: Samples = 1,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 1.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: Annotated[
        float, typer.Option(help="Sample from tokens with at least this share of the likeliest token's probability.")
    ] = 0.0,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1: makes tokens that have occurred less likely.")
    ] = 1.0,
    stop: Annotated[list[str] | None, typer.Option(help="End an answer before this text. Repeatable.")] = None,
    seed: Annotated[
        int,
        typer.Option(
            min=0, max=LARGEST_SEED, help="Seed of the first answer; each further answer has the next number."
        ),
    ] = 0,
    slots: Slots = 64,
    chat_template: ModelTemplate = None,
    delimiter: Delimiter = None,
    encoding: Encoding = None,
    column: Columns = None,
    device: Device = "auto",
    resume: ResumeRows = False,
) -> None:
    """Generate answers to prompts: one JSON line for each row, with its completion, in the order of the input.

    `logprob` is the answer's log-probability under the model itself, in nats. prefine score reads the output.
    """
    from prefine import api
    from prefine.cli.progress import counting
    from prefine.cli.row_output import row_output, write_rows
    from prefine.errors import about
    from prefine.generation.answer_rows import GeneratedRows
    from prefine.generation.row_settings import recorded_dtype, settings_of_answers, source_settings
    from prefine.generation.sampling import Sampling
    from prefine.row_rules import RowRules, columns_named

    with sampling_options("generate"):
        sampling = Sampling(
            max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, tuple(stop or ()), seed
        )
    text, rules = text_form(delimiter, encoding), RowRules(columns_named(column or ()))
    with (
        row_output(out, quarantine, prompts, resume) as (file, refused),
        counting("writing") as progress,
    ):
        rows = GeneratedRows(prompts, refused, split, text, rules)
        with about(None, MODEL_OPTIONS):
            named = api.load(model, device=device, dtype=recorded_dtype(file), chat_template=chat_template)
            loaded = named.language_model
        if file is not None:
            settings = settings_of_answers(loaded, sampling) | {"samples": samples, "slots": slots}
            rows.begin(file, settings | source_settings(prompts, split, text, rules, quarantine))
        write_rows(rows, rows.blocks(loaded, sampling, samples, slots), file, progress)
    for line in rows.summary(model):
        echo(line, err=True)
