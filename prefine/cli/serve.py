"""prefine serve."""

from __future__ import annotations

from typing import Annotated

import typer

from prefine.cli.options import LARGEST_COUNT, MODEL_OPTIONS, Device
from prefine.cli.serve_engine import Context, Engine, EngineArguments, StartTimeout, serve_by_engine
from prefine.terminal import echo

_API_KEY_VARIABLE = "PREFINE_API_KEY"


def serve(
    ctx: typer.Context,
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL…", help="Runs of one base model, folders, hub ids; reward runs are for /v1/score."
        ),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on; others than this machine's own need an API key.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar=_API_KEY_VARIABLE, help="What clients must send; the variable keeps it out of the list of processes."
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Another name that clients call this machine by; repeat it."),
    ] = None,
    slots: Annotated[int, typer.Option(min=1, max=4096, help="Answers generated at once, by each model.")] = 32,
    max_queue: Annotated[
        int, typer.Option(min=0, max=100_000, help="Answers that may wait; more get status 429.")
    ] = 256,
    max_tokens: Annotated[int, typer.Option(min=1, max=LARGEST_COUNT, help="The longest answer, in tokens.")] = 4096,
    request_timeout: Annotated[float, typer.Option(min=1, max=86_400, help="Seconds; waiting counts.")] = 600,
    shutdown_timeout: Annotated[
        float, typer.Option(min=0, max=3600, help="Seconds that running requests have when the server is to end.")
    ] = 30,
    prefix_tokens: Annotated[
        int, typer.Option(min=0, max=LARGEST_COUNT, help="Room for prompts to be reused, in tokens; 0: none.")
    ] = 16_384,
    prefill_tokens: Annotated[
        int, typer.Option(min=16, max=LARGEST_COUNT, help="Prompt tokens of a step; the others wait so long at most.")
    ] = 512,
    max_body_mib: Annotated[float, typer.Option(min=0.01, max=1024, help="The largest request.")] = 4,
    chat_template: Annotated[
        str | None, typer.Option(help="For a tokenizer without one: plain, or a Jinja file; as in a recipe.")
    ] = None,
    device: Device = "auto",
    engine: Engine = None,
    engine_arg: EngineArguments = None,
    context: Context = None,
    start_timeout: StartTimeout = None,
) -> None:
    """Serve models over HTTP: OpenAI's API with streaming, for many clients at once. Ctrl-C ends it.

    Requests name a model by the last part of its path (runs/dpo is dpo). Prompts and answers are not logged.
    """
    serve_by_engine(ctx)  # which ends the command where an engine was asked for
    from prefine.errors import about
    from prefine.recipe.sections import named_model
    from prefine.serving.app import create_app
    from prefine.serving.limits import Limits
    from prefine.serving.models import load_models
    from prefine.serving.server import address_of, listening_socket, run_server
    from prefine.serving.service import Service
    from prefine.web.policy import access_policy

    limits = Limits(slots, max_queue, max_tokens, request_timeout, shutdown_timeout, prefix_tokens, prefill_tokens)
    policy = access_policy(
        host, api_key or None, other_names=allow_host or (), max_body_bytes=round(max_body_mib * 1024**2)
    )
    with listening_socket(host, port) as sock:  # first: that an address is taken shows before a model is loaded
        with about(None, {"model.chat_template": MODEL_OPTIONS["chat_template"]}):
            section = named_model(models[0], device=device, chat_template=chat_template)
            loaded = load_models(models, section)
        service = Service(loaded, limits)
        address = address_of(sock)

        def ready() -> None:
            for line in _greeting(address, [model.id for model in loaded.all()], bool(loaded.languages), api_key):
                echo(line, err=True)

        run_server(create_app(service, policy), service, sock, ready)


def _greeting(address: str, names: list[str], generates: bool, api_key: str | None) -> list[str]:
    key = " \\\n  -H 'Authorization: Bearer '\"$" + _API_KEY_VARIABLE + '"' if api_key else ""
    json = "-H 'Content-Type: application/json'"
    if generates:
        path, body = (
            "chat/completions",
            f'{{"model": "{names[0]}", "messages": [{{"role": "user", "content": "Hello"}}]}}',
        )
    else:
        turns = '"messages": [{"role": "user", "content": "Hello"}], "completions": ["Hi!"]'
        path, body = "score", f'{{"model": "{names[0]}", {turns}}}'
    return [
        f"Serving {', '.join(names)} at {address}/v1 (Ctrl-C ends it)",
        f"Try: curl {address}/v1/{path} {json}{key} \\\n  -d '{body}'",
    ]
