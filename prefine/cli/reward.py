"""prefine reward: train, check, merge."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefine.cli.options import AsJson, Device, Overrides, RecipePath, Resume
from prefine.terminal import echo, visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from prefine.evaluation.readiness.assess import Readiness

RewardName = Annotated[
    str, typer.Argument(metavar="MODEL", help="A reward run (runs/NAME), a folder, or a hub id.", show_default=False)
]


def train(recipe: RecipePath, overrides: Overrides, resume: Resume = False) -> None:
    """Train a reward model on preferences, or on votes, and report whether it is fit for PPO."""
    from prefine import api
    from prefine.recipe.loading import load_recipe
    from prefine.recipe.reward import RewardRecipe

    api.reward(load_recipe(recipe, overrides, RewardRecipe), resume=resume, display=True)


def check(
    model: RewardName,
    overrides: Overrides,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Pairs or votes to judge it by; default: the run's own held-out rows."),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of a Hugging Face dataset; files are read completely.")] = "test",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Folder of the report; default without --data and --set: the run's folder."
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="The model that PPO will train: checks whether it has the reward model's tokens."
        ),
    ] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Check whether a reward model is fit for PPO: go, caution or no-go, with reasons and charts.

    --set readiness.min_accuracy=0.7 changes a threshold. The report has the accuracy of each subset, as RewardBench
    does.
    """
    import json

    from rich.console import Console

    from prefine.cli.progress import counting
    from prefine.cli.row_output import require_report_folder
    from prefine.evaluation.readiness.check import check_reward, run_folder
    from prefine.evaluation.readiness.page import write_readiness

    console = Console(highlight=False)
    # PPO goes by the run's own report: other data or thresholds do not overwrite it.
    run = run_folder(model)
    folder = out or (None if data or overrides else run)
    if folder is not None:
        require_report_folder(folder, data or (), run)
    with counting("scoring") as progress:
        checked = check_reward(
            model, overrides, data=data or (), split=split, policy=policy, device=device, progress=progress
        )
    readiness = checked.readiness
    page = None if folder is None else write_readiness(readiness, folder)
    if as_json:
        echo(json.dumps(readiness.as_json(), indent=2))
        for line in checked.notes:
            echo(line, err=True)
        return
    _print(console, readiness)
    for line in checked.notes:
        console.print(visible(line), markup=False, soft_wrap=True)
    last = f"report: {page}" if page else "Add --out FOLDER for the report with its charts."
    console.print(visible(last), markup=False, soft_wrap=True)


def _print(console: Console, readiness: Readiness) -> None:
    from rich.text import Text

    from prefine.data.reading.rows import printable
    from prefine.formatting import percent, percent_range

    styles = {"go": "green", "caution": "yellow", "no-go": "red"}
    console.print(
        Text(visible(f"{readiness.model}: {readiness.verdict.value}"), style=f"bold {styles[readiness.verdict.value]}")
    )
    table = _table("check", "found", "required", "")
    for each in readiness.findings:
        table.add_row(
            Text(each.name),
            Text(visible(each.found)),
            Text(visible(each.rule)),
            Text(each.level.value, style=styles[each.level.value]),
        )
    console.print(table)
    if readiness.by_group:
        table = _table("subset", "pairs", "accuracy", "95 % interval")
        for part in readiness.by_group:
            interval = part.accuracy.interval
            table.add_row(
                Text(printable(part.name)),
                f"{part.accuracy.count}",
                percent(part.accuracy.value, 1),
                percent_range(interval) if interval else "",
            )
        console.print(table)
    for reason in readiness.reasons:
        console.print(
            Text(visible(f"{reason.level.value}: {reason.name}. {reason.meaning}"), style=styles[reason.level.value])
        )
    console.print(Text(visible(readiness.scope)), soft_wrap=True)
    if readiness.too_long:
        console.print(f"{readiness.too_long} records were left out: an answer is too long for the model.")


def _table(*columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for number, name in enumerate(columns):
        table.add_column(name, overflow="fold", style="cyan" if number == 0 else "")
    return table


def merge(
    model: RewardName,
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of the merged model.", show_default=False)],
    dtype: Annotated[str, typer.Option(help="float32 (changes no score) or bfloat16 (half the size).")] = "float32",
) -> None:
    """Merge a reward run into one model that AutoModelForSequenceClassification loads, and check that it scores
    alike.
    """
    from prefine.export.reward_model import merge_reward

    apart = merge_reward(model, out, dtype)
    echo(f"{out}: scores differ from those of {model} by at most {apart:.2g} standard deviations")
