"""prefine score."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prefine.cli.options import Device


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
        Path | None, typer.Option(metavar="FILE", help="Write here, whole or not at all; else print.")
    ] = None,
    quarantine: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where rows go that cannot be scored; else they are counted.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of a Hugging Face data set; files are read whole.")] = "train",
    chat_template: Annotated[
        str | None, typer.Option(help="For a tokenizer without one: plain, or a Jinja file; as in a recipe.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Score answers: each row comes back as one JSON line with its score, in order, while it is read.

    A row with one answer gets `score`, a pair `score_of_chosen` and `score_of_rejected`; with several heads also their
    disagreement, a standard deviation. Scores of prefine's own models are centred: 0 is an average held-out answer.
    """
    from prefine.cli.progress import counting
    from prefine.cli.row_output import require_apart, write_rows
    from prefine.data.quarantine import Quarantine
    from prefine.evaluation.scores import ScoredRows
    from prefine.models.reward import load_reward
    from prefine.recipe import ModelSection

    require_apart(out, quarantine, sources)
    with Quarantine(quarantine) as refused, counting("scoring") as progress:
        rows = ScoredRows(sources, refused, split)  # first: a file that is not there is found before a model is loaded
        reward = load_reward(ModelSection(name=model, device=device, chat_template=chat_template))
        write_rows(rows.by(reward), out, progress)
    for line in rows.summary(reward):
        typer.echo(line, err=True)
