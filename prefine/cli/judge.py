"""prefine judge."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefine.cli.options import LARGEST_COUNT, AsJson
from prefine.terminal import echo

if TYPE_CHECKING:
    from prefine.comparisons.result import Estimate, WinRate
    from prefine.evaluation.comparing.judged import Judgement

_MOST_REFUSED = 5
_OF_A_JUDGE = ("template", "key_variable", "at_once", "timeout", "attempts", "max_tokens", "price_in", "price_out")


def judge(
    ctx: typer.Context,
    answers: Annotated[
        list[Path],
        typer.Argument(
            metavar="ANSWERS…",
            help="The folder of an evaluation, or two files of prefine generate: the candidate's, then the baseline's.",
            show_default=False,
        ),
    ],
    url: Annotated[
        str | None,
        typer.Option("--judge", metavar="URL", help="An OpenAI-compatible endpoint: http://127.0.0.1:8000/v1."),
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="The judge's name at the endpoint.")] = None,
    key_variable: Annotated[
        str, typer.Option("--key-env", metavar="NAME", help="Environment variable with the endpoint's API key.")
    ] = "PREFINE_JUDGE_KEY",
    template: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The text that asks, with $conversation, $answer_a and $answer_b."),
    ] = None,
    at_once: Annotated[int, typer.Option(min=1, max=256, help="At most this many requests at once.")] = 8,
    timeout: Annotated[
        float, typer.Option(min=0.1, max=86_400, metavar="SECONDS", help="The longest time of one request.")
    ] = 60.0,
    attempts: Annotated[int, typer.Option(min=1, max=100, help="Attempts of a request, with growing waits.")] = 6,
    max_tokens: Annotated[
        int, typer.Option(min=1, max=LARGEST_COUNT, help="The longest reply of the judge, with its reasoning.")
    ] = 1024,
    price_in: Annotated[
        float | None, typer.Option(min=0, help="Price of a million prompt tokens, to count the cost.")
    ] = None,
    price_out: Annotated[float | None, typer.Option(min=0, help="Price of a million tokens of replies.")] = None,
    votes: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="People's votes: arena JSONL (FastChat's form), or an annotation project."),
    ] = None,
    votes_out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write all verdicts to this file as arena JSONL.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="For the report on two files; default: evaluations/CANDIDATE-against-BASELINE."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Let a model or people judge which answers are better: win rates, added to the evaluation's report.

    The judge sees each pair in both orders; if its verdicts disagree, the pair is a tie. Replies are kept on disk: the
    same command continues after an interruption, and asks for nothing twice.
    """
    from prefine.cli.progress import counting
    from prefine.evaluation.comparing.judged import AskedJudge, judge_comparison
    from prefine.judges.endpoint import Endpoint
    from prefine.judges.endpoint_judge import JudgeSettings
    from prefine.judges.template import JudgeTemplate
    from prefine.runs.atomic import require_writable

    _check(ctx)
    if votes_out is not None:
        require_writable(votes_out)
    request = None
    with ExitStack() as opened:
        if url is not None and model is not None:
            endpoint = Endpoint(url, key_variable=key_variable, timeout_s=timeout, attempts=attempts)
            settings = JudgeSettings(model, max_tokens, price_in=price_in, price_out=price_out)
            request = AskedJudge(opened.enter_context(endpoint), settings, JudgeTemplate(template), at_once)
        progress = opened.enter_context(counting("judging"))
        found = judge_comparison(answers, judge=request, votes=votes, votes_out=votes_out, out=out, progress=progress)
    _show(found, as_json)
    if found.problem is not None:
        raise found.problem


def _check(ctx: typer.Context) -> None:
    """Refuse options that are not valid, or have no effect, together."""
    from prefine.errors import RecipeError

    url, model, price_in, price_out = (ctx.params[name] for name in ("url", "model", "price_in", "price_out"))
    _require_finite({"--price-in": price_in, "--price-out": price_out})
    _require_judges([url, ctx.params["votes"], ctx.params["votes_out"]])
    _require_both({"--judge": url, "--model": model})
    _require_both({"--price-in": price_in, "--price-out": price_out})
    if url is None:
        _require_no_judge_options(ctx)
    elif not model.strip():
        raise RecipeError(
            "--model is blank, and verdicts need a judge's name", "Write the model's name at the endpoint."
        )


def _require_finite(options: dict[str, float | None]) -> None:
    """Refuse infinite prices, which no range refuses."""
    from prefine.errors import RecipeError

    for name, value in options.items():
        if value is not None and not math.isfinite(value):
            raise RecipeError(f"{name} is {value}, which is not a finite number", "See prefine judge --help.")


def _require_judges(sources: list[object]) -> None:
    from prefine.errors import RecipeError

    if all(each is None for each in sources):
        raise RecipeError(
            "nobody judges", "Name a judge with --judge URL --model NAME, or people's votes with --votes."
        )


def _require_no_judge_options(ctx: typer.Context) -> None:
    """Refuse what would have no effect without a judge to ask."""
    from prefine.errors import RecipeError

    for option in ctx.command.params:
        source = ctx.get_parameter_source(option.name or "")
        if option.name in _OF_A_JUDGE and source is not None and source.name != "DEFAULT":
            raise RecipeError(
                f"{option.opts[0]} has no effect without --judge",
                "Leave it out, or name a judge with --judge and --model.",
            )


def _require_both(options: dict[str, object]) -> None:
    from prefine.errors import RecipeError

    missing = [name for name, value in options.items() if value is None]
    if len(missing) == 1:
        (given,) = options.keys() - {*missing}
        raise RecipeError(f"{given} is given without {missing[0]}", "Give both, or neither.")


def _show(found: Judgement, as_json: bool) -> None:
    for refused in found.refused[:_MOST_REFUSED]:
        echo(f"no vote: {refused}", err=True)
    if (more := len(found.refused) - _MOST_REFUSED) > 0:
        echo(f"no vote: {more} more lines", err=True)
    if as_json:
        rates = [rate.model_dump(mode="json") for rate in found.win_rates]
        echo(json.dumps({"win_rates": rates, "folder": str(found.folder)}, ensure_ascii=False))
        return
    for rate in found.win_rates:
        for line in _lines(rate):
            echo(line)
    echo(f"report: {found.folder / 'report.html'}")


def _lines(rate: WinRate) -> Iterator[str]:
    """A win rate for people."""
    yield rate.sentence
    for name, share in (
        ("without ties", rate.decided),
        ("at equal length", rate.length_controlled),
        ("same verdict in both orders", rate.consistency),
    ):
        if share is not None:
            yield f"  {name}: {_share(share)}"
    spent = rate.spent
    if "requests" in spent:
        now = f"{spent['requests']:,.0f} requests, {spent['requests_now']:,.0f} of them now"
        unknown = spent["requests_without_usage"]
        tokens = f"{spent['prompt_tokens']:,.0f} tokens asked, {spent['completion_tokens']:,.0f} replied"
        yield f"  spent: {now}; {tokens}" + (f" (unknown for {unknown:,.0f} requests)" if unknown else "")
    if "cost" in spent:
        yield f"  cost: {spent['cost']:.4f}"
    for reason, count in rate.failed.items():
        yield f"  no verdict on {count}: {reason}"
    for warning in rate.warnings:
        yield f"  warning: {warning}"


def _share(share: Estimate) -> str:
    from prefine.comparisons.sentences import rate_text

    return rate_text(share)
