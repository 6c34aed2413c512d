"""What a comparison is asked for."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from prefine.errors import RecipeError
from prefine.evaluation.comparing.sides import Dtype, endpoint_name
from prefine.generation.sampling import Sampling
from prefine.judges.endpoint import endpoint_url

FOLDER = Path("evaluations")


@dataclass(frozen=True)
class JudgeRequest:
    """A language model that judges.

    Attributes:
        url: of its endpoint, with the version's path: http://127.0.0.1:8000/v1.
        model: its name at the endpoint.
        at_once: the most requests at a time.
    """

    url: str
    model: str
    at_once: int = 8


@dataclass(frozen=True)
class EvaluationRequest:
    """The arguments of `prefine evaluate`.

    Attributes:
        candidate: a run, a folder, a hub id, embedded:…, or an endpoint: http://host:port/v1#MODEL.
        baseline: likewise; None for the model that the candidate's run began with.
        prompts: sources; empty for the rows that the candidate's run held out.
        limit: at most so many prompts, evenly spaced; None for all.
        reference: of the KL divergence; None for the baseline.
        reward: a reward model that judges; None for the one of the candidate's run, if it has one.
        pairs, demonstrations: sources of held-out rows; empty for those that the candidate's run held out.
        sampling: of the answers; `seed` is that of the first answer, each further answer has the next number.
        samples: answers to each prompt.
        slots: answers generated at once.
        regression: whether to run the regression set.
        lm_eval: tasks of lm-eval-harness, by name or as YAML files.
        judge: a language model behind an endpoint that says which answer is better; None for none.
        gate: a YAML file with the rules that the candidate must pass.
        out: the folder; None for evaluations/CANDIDATE-against-BASELINE.
        force: begin anew, whatever comparison the folder holds.
        command: that was typed, for the report.
    """

    candidate: str
    baseline: str | None = None
    prompts: tuple[str, ...] = ()
    limit: int | None = None
    reference: str | None = None
    reward: str | None = None
    pairs: tuple[str, ...] = ()
    demonstrations: tuple[str, ...] = ()
    sampling: Sampling = field(default_factory=lambda: Sampling(256))
    samples: int = 1
    slots: int = 64
    regression: bool = True
    lm_eval: tuple[str, ...] = ()
    judge: JudgeRequest | None = None
    gate: Path | None = None
    out: Path | None = None
    force: bool = False
    device: str = "auto"
    dtype: Dtype = "auto"
    chat_template: str | None = None
    command: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, value in (("samples", self.samples), ("slots", self.slots), ("limit", self.limit or 1)):
            if value < 1:
                raise RecipeError(f"{name} is {value}; it must be at least 1", "Change it.")
        if self.sampling.max_new_tokens < 1:
            raise RecipeError(f"max_new_tokens is {self.sampling.max_new_tokens}; it must be at least 1", "Change it.")


def judge_request(url: str | None, model: str | None) -> JudgeRequest | None:
    """The judge of two arguments, which belong together; None without both.

    Raises:
        RecipeError: one is given without the other, or the URL is not one.
    """
    if url is None and model is None:
        return None
    if url is None or model is None:
        given, missing = ("a judge's model", "judge") if url is None else ("a judge's endpoint", "judge_model")
        raise RecipeError(
            f"{given} is named without its {'endpoint' if url is None else 'model'}", "Name both.", field=missing
        )
    return JudgeRequest(endpoint_url(url), model)


def default_folder(candidate: str, baseline: str) -> Path:
    """evaluations/CANDIDATE-against-BASELINE, by the last parts of their names."""
    return FOLDER / f"{_short(candidate)}-against-{_short(baseline)}"


def _short(name: str) -> str:
    endpoint = endpoint_name(name)
    last = endpoint.model if endpoint is not None else Path(name).expanduser().resolve().name or name
    return re.sub(r"[^\w.\-]+", "-", last.removeprefix("embedded:").rpartition("/")[2]).strip("-.") or "model"
