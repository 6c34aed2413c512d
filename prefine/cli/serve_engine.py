"""`prefine serve --engine`: which of the command's options an engine takes."""

from __future__ import annotations

from typing import Annotated

import typer

Engine = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="vllm or llama.cpp: serve with that instead, from an environment of its own."),
]
EngineArguments = Annotated[
    list[str] | None,
    typer.Option(metavar="ARGUMENT", help="A further argument for the engine (--engine-arg=--flag=value); repeat it."),
]
Context = Annotated[int | None, typer.Option(min=16, help="The longest sequence, prompt and answer, in tokens.")]
StartTimeout = Annotated[
    float | None, typer.Option(min=1, max=86_400, help="With --engine: seconds that loading may take [default: 900].")
]

_OF_ENGINES = ("engine_arg", "start_timeout")
_TAKEN = {"ctx", "models", "host", "port", "api_key", "slots", "context", "engine", *_OF_ENGINES}
_START_TIMEOUT_S = 900.0


def serve_by_engine(ctx: typer.Context) -> None:
    """Serve with the engine that the command names, and end the command; do nothing where it names none.

    Raises:
        RecipeError: an option that the engine has no use for, or one of engines without an engine.
    """
    from prefine.errors import RecipeError

    values = ctx.params
    given = [name for name in values if _was_given(ctx, name)]
    engine = values["engine"]
    if engine is None:
        if alone := [name for name in given if name in _OF_ENGINES]:
            raise RecipeError(
                "there is no --engine that it is for", "Add --engine, or leave it out.", field=_flag(alone[0])
            )
        return
    from prefine.engines.run_engine import run_engine

    if foreign := [name for name in given if name not in _TAKEN]:
        raise RecipeError(
            f"it is a setting of prefine's own engine, and {engine} does not take it",
            "Leave it out, or give the engine's own flag with --engine-arg.",
            field=_flag(foreign[0]),
        )
    code = run_engine(
        engine,
        values["models"],
        host=values["host"],
        port=values["port"],
        api_key=values["api_key"] or None,
        slots=values["slots"] if "slots" in given else None,
        context=values["context"],
        more=values["engine_arg"] or (),
        start_timeout_s=values["start_timeout"] or _START_TIMEOUT_S,
    )
    raise typer.Exit(code)


def _was_given(ctx: typer.Context, name: str) -> bool:
    """Whether the user wrote an option; a variable such as PREFINE_API_KEY counts, too."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name in ("COMMANDLINE", "ENVIRONMENT")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
