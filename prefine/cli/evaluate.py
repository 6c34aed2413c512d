"""prefine evaluate."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from prefine.cli.options import (
    LARGEST_COUNT,
    LARGEST_SEED,
    Device,
    MaxNewTokens,
    ModelTemplate,
    Samples,
    Slots,
    Temperature,
    TopK,
    TopP,
    sampling_options,
)
from prefine.terminal import echo

_DO_NOT_SHIP = 3
# Names of the API's arguments as options, for error messages.
_OPTIONS = {
    "baseline": "--against",
    "candidate": "CANDIDATE",
    **{
        name: f"--{name.replace('_', '-')}"
        for name in (
            "at_once",
            "attempts",
            "chat_template",
            "device",
            "judge",
            "judge_max_tokens",
            "judge_model",
            "judge_template",
            "pairs",
            "price_in",
            "price_out",
            "prompts",
            "reference",
            "reward",
        )
    },
    "timeout_s": "--timeout",
}

Candidate = Annotated[
    str,
    typer.Argument(
        metavar="CANDIDATE",
        help="A run (runs/NAME), a folder, a hub id, embedded:… or an endpoint (http://host:port/v1#MODEL).",
        show_default=False,
    ),
]
Against = Annotated[
    str | None,
    typer.Option(metavar="BASELINE", help="What to compare with; default: the model that the run began with."),
]
Prompts = Annotated[
    list[str] | None,
    typer.Option(metavar="FILE", help="Rows with a prompt. Repeatable; default: the run's held-out rows."),
]
Limit = Annotated[
    int | None, typer.Option(min=1, max=LARGEST_COUNT, help="At most so many prompts, evenly spaced; default: all.")
]
RewardName = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="A reward model that judges; default: the one of a PPO run's recipe."),
]
JudgeUrl = Annotated[
    str | None, typer.Option(metavar="URL", help="Endpoint of a language model that judges: http://host:port/v1.")
]
JudgeModel = Annotated[str | None, typer.Option(metavar="NAME", help="The judge's name at its endpoint.")]
JudgeTemplateFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="The text that asks the judge; see prefine judge.")
]
JudgeMaxTokens = Annotated[
    int | None, typer.Option(min=1, max=LARGEST_COUNT, help="The longest reply of the judge; default: 1,024 tokens.")
]
PriceIn = Annotated[float | None, typer.Option(min=0, help="The judge's price of a million prompt tokens.")]
PriceOut = Annotated[float | None, typer.Option(min=0, help="The judge's price of a million tokens of replies.")]
Timeout = Annotated[
    float | None,
    typer.Option(min=0.1, max=86_400, metavar="SECONDS", help="Of a request to an endpoint; default: 60."),
]
Attempts = Annotated[
    int | None, typer.Option(min=1, max=100, help="Of a request to an endpoint, with growing waits; default: 6.")
]
AtOnce = Annotated[
    int | None, typer.Option(min=1, max=256, help="At most this many requests to an endpoint at once; default: 8.")
]
ReferenceName = Annotated[
    str | None, typer.Option(metavar="MODEL", help="Of the KL divergence; default: the baseline.")
]
PairFiles = Annotated[
    list[str] | None,
    typer.Option(metavar="FILE", help="Preference pairs, for accuracy. Default: those that the run held out."),
]
DemonstrationFiles = Annotated[
    list[str] | None,
    typer.Option(metavar="FILE", help="Demonstrations, for perplexity. Default: those that the run held out."),
]
WithRegression = Annotated[bool, typer.Option(help="Run the bundled regression set on both models.")]
LmEvalTasks = Annotated[
    list[str] | None,
    typer.Option(metavar="TASK", help="A task of lm-eval-harness, or its YAML file. Repeatable."),
]
GateFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Rules in YAML; exit code 3 if the candidate fails one.")
]
Seed = Annotated[
    int, typer.Option(min=0, max=LARGEST_SEED, help="Seed of the first answer; both models have the same seeds.")
]
OutFolder = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="For the report; default: evaluations/CANDIDATE-against-BASELINE."),
]
Force = Annotated[bool, typer.Option("--force", help="Begin anew: answers and figures in the folder are made again.")]


def evaluate(
    candidate: Candidate,
    against: Against = None,
    prompts: Prompts = None,
    limit: Limit = None,
    reward: RewardName = None,
    judge: JudgeUrl = None,
    judge_model: JudgeModel = None,
    judge_template: JudgeTemplateFile = None,
    judge_max_tokens: JudgeMaxTokens = None,
    price_in: PriceIn = None,
    price_out: PriceOut = None,
    timeout: Timeout = None,
    attempts: Attempts = None,
    at_once: AtOnce = None,
    reference: ReferenceName = None,
    pairs: PairFiles = None,
    demonstrations: DemonstrationFiles = None,
    regression: WithRegression = True,
    lm_eval: LmEvalTasks = None,
    gate: GateFile = None,
    samples: Samples = 1,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 1.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    slots: Slots = 64,
    chat_template: ModelTemplate = None,
    device: Device = "auto",
    out: OutFolder = None,
    force: Force = False,
) -> None:
    """Compare two models: a verdict with its uncertainty, what got worse, and a page with all answers side by side.

    Both models answer the same prompts with the same random numbers. The same command continues after an interruption.
    """
    from prefine.cli.evaluation_output import evaluation_progress
    from prefine.comparisons.lines import comparison_lines
    from prefine.errors import about
    from prefine.evaluation.comparing.evaluate import evaluate as compare
    from prefine.evaluation.comparing.request import EvaluationRequest, judge_request, patience_of
    from prefine.generation.sampling import Sampling

    with sampling_options("evaluate"):
        sampling = Sampling(max_new_tokens, temperature, top_k, top_p, seed=seed)
    with evaluation_progress() as progress, about(None, _OPTIONS):
        request = EvaluationRequest(
            candidate,
            against,
            tuple(prompts or ()),
            limit,
            reference,
            reward,
            tuple(pairs or ()),
            tuple(demonstrations or ()),
            sampling,
            samples,
            slots,
            regression,
            tuple(lm_eval or ()),
            judge_request(judge, judge_model, judge_template, judge_max_tokens, price_in, price_out),
            gate,
            out,
            force,
            device,
            chat_template=chat_template,
            command=("prefine", *sys.argv[1:]),
            patience=patience_of(timeout, attempts, at_once),
        )
        comparison, folder = compare(request, progress)
    for line in comparison_lines(comparison, folder):
        echo(line)
    if any(not rule.passed for rule in comparison.gate):
        raise typer.Exit(_DO_NOT_SHIP)
