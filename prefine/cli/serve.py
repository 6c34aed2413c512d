"""prefine serve."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from prefine.cli.options import LARGEST_COUNT, MODEL_OPTIONS, Device
from prefine.cli.serve_engine import Context, Engine, EngineArguments, StartTimeout, serve_by_engine
from prefine.terminal import echo

if TYPE_CHECKING:
    from prefine.feedback.store import FeedbackStore
    from prefine.serving.models import Models

_API_KEY_VARIABLE = "PREFINE_API_KEY"
_MODEL_FIELDS = {
    "model.chat_template": MODEL_OPTIONS["chat_template"],
    "model.device": "--device",
    "model.dtype": "--dtype",
}

Dtype = Annotated[
    Literal["auto", "float32", "bfloat16"], typer.Option(help="Of the products; auto measures which is faster.")
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        envvar=_API_KEY_VARIABLE, help="What clients must send; the variable keeps it out of the list of processes."
    ),
]
AllowedHosts = Annotated[
    list[str] | None,
    typer.Option("--allow-host", metavar="NAME", help="Another name that clients call this machine by; repeat it."),
]
MaxQueue = Annotated[int, typer.Option(min=0, max=100_000, help="Answers that may wait; more get status 429.")]
FeedbackFile = Annotated[Path, typer.Option(metavar="FILE", help="Where thumbs and corrections are kept.")]
NoFeedback = Annotated[bool, typer.Option("--no-feedback", help="Take no feedback and keep nothing.")]
StorePrompts = Annotated[
    bool, typer.Option("--store-prompts", help="Keep conversations and answers, too: feedback needs them to train.")
]
RetentionDays = Annotated[
    float | None, typer.Option(min=0.001, max=100_000, help="Delete what is kept after so many days.")
]
Redact = Annotated[
    bool, typer.Option(help="Remove e-mail addresses, telephone and card numbers from texts that are kept.")
]
RedactPatterns = Annotated[
    list[str] | None,
    typer.Option("--redact-pattern", metavar="REGEX", help="Remove what this matches from them, too; repeat it."),
]


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
    api_key: ApiKey = None,
    allow_host: AllowedHosts = None,
    slots: Annotated[int, typer.Option(min=1, max=4096, help="Answers generated at once, by each model.")] = 32,
    max_queue: MaxQueue = 256,
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
    feedback: FeedbackFile = Path("feedback.db"),
    no_feedback: NoFeedback = False,
    store_prompts: StorePrompts = False,
    retention_days: RetentionDays = None,
    redact: Redact = True,
    redact_pattern: RedactPatterns = None,
    chat_template: Annotated[
        str | None, typer.Option(help="For a tokenizer without one: plain, or a Jinja file; as in a recipe.")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    engine: Engine = None,
    engine_arg: EngineArguments = None,
    context: Context = None,
    start_timeout: StartTimeout = None,
) -> None:
    """Serve models over HTTP: OpenAI's API with streaming, for many clients at once. Ctrl-C ends it.

    Requests name a model by the last part of its path (runs/dpo is dpo). A chat page is at /. Prompts and answers are
    not logged, and kept only with --store-prompts.
    """
    serve_by_engine(ctx)  # which ends the command where an engine was asked for
    from prefine.errors import about
    from prefine.feedback.database import require_usable
    from prefine.feedback.store import FeedbackSettings, FeedbackStore
    from prefine.recipe.sections import named_model
    from prefine.serving.app import create_app
    from prefine.serving.limits import Limits
    from prefine.serving.models import load_models
    from prefine.serving.page.router import page_router
    from prefine.serving.routes.feedback import feedback_router
    from prefine.serving.server import run_server
    from prefine.serving.service import Service
    from prefine.web.policy import access_policy
    from prefine.web.server import address_of, listening_socket

    timeouts = request_timeout, shutdown_timeout
    limits = Limits(slots, max_queue, max_tokens, *timeouts, prefix_tokens, prefill_tokens, context)
    largest = int(max_body_mib * 2**20)
    policy = access_policy(host, api_key or None, other_names=allow_host or (), max_body_bytes=largest)
    settings = FeedbackSettings(store_prompts, retention_days, redact, tuple(redact_pattern or ()))
    # First: that an address is taken, or that a file is not ours, shows before a model is loaded.
    with listening_socket(host, port) as sock, ExitStack() as stack:
        if not no_feedback:
            require_usable(feedback)
        with about(None, _MODEL_FIELDS):
            section = named_model(models[0], device=device, dtype=dtype, chat_template=chat_template)
            loaded = load_models(models, section)
        store = None if no_feedback else stack.enter_context(FeedbackStore(feedback, settings))
        greeting = [*_greeting(address_of(sock), loaded, api_key), *_about_feedback(store)]
        app = create_app(service := Service(loaded, limits, store), policy, [feedback_router(store), page_router()])
        run_server(app, service, sock, lambda: echo("\n".join(greeting), err=True))


def _about_feedback(store: FeedbackStore | None) -> Iterator[str]:
    if store is None:
        return
    what = "conversations and feedback on them" if store.settings.store_texts else "feedback without texts"
    days = "" if store.settings.retention_days is None else f" for {store.settings.retention_days:g} days"
    hint = "" if store.settings.store_texts else "; nothing can be trained on it without --store-prompts"
    yield f"Keeping {what} in {store.path}{days}{hint}"


def _greeting(address: str, loaded: Models, api_key: str | None) -> list[str]:
    names = [model.id for model in loaded.all()]
    key = " \\\n  -H 'Authorization: Bearer '\"$" + _API_KEY_VARIABLE + '"' if api_key else ""
    json = "-H 'Content-Type: application/json'"
    if loaded.languages:
        path, body = (
            "chat/completions",
            f'{{"model": "{names[0]}", "messages": [{{"role": "user", "content": "Hello"}}]}}',
        )
    else:
        turns = '"messages": [{"role": "user", "content": "Hello"}], "completions": ["Hi!"]'
        path, body = "score", f'{{"model": "{names[0]}", {turns}}}'
    return [
        f"Serving {', '.join(names)} at {address}/v1, with a chat page at {address} (Ctrl-C ends it)",
        f"Try: curl {address}/v1/{path} {json}{key} \\\n  -d '{body}'",
    ]
