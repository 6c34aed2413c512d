"""prefine chat."""

from __future__ import annotations

from typing import Annotated

import typer

from prefine.cli.options import LARGEST_COUNT, LARGEST_SEED, Device, Temperature, sampling_options


def chat(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run (runs/NAME), a folder, a hub id or embedded:…")],
    against: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="A second model that gets the same questions; answers side by side."),
    ] = None,
    system: Annotated[str | None, typer.Option(help="The first system turn.")] = None,
    temperature: Temperature = 0.7,
    top_p: Annotated[float, typer.Option(help="Sample from the likeliest tokens with this total probability.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=LARGEST_COUNT, help="The longest answer, in tokens.")] = 512,
    seed: Annotated[
        int, typer.Option(min=0, max=LARGEST_SEED, help="The same seed and questions give the same answers.")
    ] = 0,
    device: Device = "auto",
) -> None:
    """Chat with a model in the terminal. Ctrl-C stops an answer, Ctrl-D leaves, /help lists commands.

    If standard input is not a terminal, each of its lines is a turn. A chat is written to disk only by /save.
    """
    from rich.console import Console

    from prefine import api
    from prefine.cli.chat_input import asker
    from prefine.cli.chat_screen import ConsoleScreen
    from prefine.cli.chat_session import COMMANDS, Chat
    from prefine.generation.chat import Talk
    from prefine.generation.sampling import Sampling

    with sampling_options("chat"):
        sampling = Sampling(max_new_tokens, temperature, top_p=top_p, seed=seed)
    names = [model] if against is None else [model, against if against != model else f"{against} (2)"]
    talks = {
        name: Talk(api.load(source, device=device).language_model, system, sampling)
        for name, source in zip(names, (model, against), strict=False)
        if source is not None
    }
    screen = ConsoleScreen(Console())
    screen.note(f"Talking to {' and '.join(names)}. /help lists commands, Ctrl-D leaves.")
    Chat(talks, asker(list(COMMANDS)), screen).run()
