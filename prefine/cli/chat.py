"""prefine chat."""

from __future__ import annotations

from typing import Annotated

import typer

from prefine.cli.options import LARGEST_COUNT, LARGEST_SEED, Device, Temperature, sampling_options


def chat(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run (runs/NAME), a folder, a hub id or embedded:…")],
    system: Annotated[str | None, typer.Option(help="A system turn to begin with.")] = None,
    temperature: Temperature = 0.7,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=LARGEST_COUNT, help="The longest answer, in tokens.")] = 512,
    seed: Annotated[
        int, typer.Option(min=0, max=LARGEST_SEED, help="The same seed and words give the same answers.")
    ] = 0,
    device: Device = "auto",
) -> None:
    """Talk to a model in the terminal; answers stream. End with Ctrl-D or /exit, begin anew with /new."""
    from rich.console import Console

    from prefine.evaluation.conversation import Talk
    from prefine.models.load import load_model
    from prefine.models.sampling import Sampling
    from prefine.recipe import named_model
    from prefine.terminal import visible

    with sampling_options("chat"):
        sampling = Sampling(max_new_tokens, temperature, seed=seed)
    console = Console()
    loaded = load_model(named_model(model, device=device), None, trainable=False)
    talk = Talk(loaded, system, sampling)
    console.out(visible(f"Talking to {model}. /new begins anew, /exit or Ctrl-D ends."), style="dim", highlight=False)
    while True:
        try:
            said = console.input("[bold]you>[/] ").strip()
        except EOFError:
            console.print()
            return
        if said == "/exit":
            return
        if said == "/new":
            talk.forget()
        elif said:
            for piece in talk.answer(said):
                console.out(visible(piece), end="", highlight=False)
            console.print()
