"""What a comparison is asked for."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from prefine.comparisons.gate import Gate
from prefine.errors import RecipeError
from prefine.evaluation.comparing.sides import Dtype, endpoint_name
from prefine.generation.sampling import Sampling
from prefine.judges.endpoint import Patience, endpoint_url
from prefine.judges.endpoint_judge import JudgeSettings, judge_name
from prefine.judges.template import JudgeTemplate

FOLDER = Path("evaluations")


@dataclass(frozen=True)
class JudgeRequest:
    """A language model that judges.

    Attributes:
        url: of its endpoint, with the version's path: http://127.0.0.1:8000/v1.
        settings: its model, and the rest of a request.
        template: the text that asks.
    """

    url: str
    settings: JudgeSettings
    template: JudgeTemplate = field(default_factory=JudgeTemplate)

    @property
    def name(self) -> str:
        """The judge in the report."""
        return judge_name(self.settings, self.template)


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
        patience: how endpoints of models and judges are asked; None for the defaults.
        gate: the rules that the candidate must pass, or a YAML file with them; None for none.
        out: the folder; None for evaluations/CANDIDATE-against-BASELINE.
        force: begin anew, whatever comparison the folder holds.
        renew: begin anew if it holds one of other settings, instead of refusing it; replies of endpoints stay.
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
    gate: Path | Gate | None = None
    out: Path | None = None
    force: bool = False
    device: str = "auto"
    dtype: Dtype = "auto"
    chat_template: str | None = None
    command: tuple[str, ...] = ()
    patience: Patience | None = None
    renew: bool = False

    def __post_init__(self) -> None:
        for name, value in (("samples", self.samples), ("slots", self.slots), ("limit", self.limit or 1)):
            if value < 1:
                raise RecipeError(f"{name} is {value}; it must be at least 1", "Change it.")
        if self.sampling.max_new_tokens < 1:
            raise RecipeError(f"max_new_tokens is {self.sampling.max_new_tokens}; it must be at least 1", "Change it.")
        names = [name for name in (self.candidate, self.baseline, self.reference) if name is not None]
        if self.patience is not None and self.judge is None and not any(map(endpoint_name, names)):
            raise RecipeError(
                "timeout, attempts and at_once have no effect, as no model is behind an endpoint", "Leave them out."
            )


def judge_request(
    url: str | None,
    model: str | None,
    judge_template: Path | None = None,
    judge_max_tokens: int | None = None,
    price_in: float | None = None,
    price_out: float | None = None,
) -> JudgeRequest | None:
    """The judge of two arguments, which belong together, and of further ones; None without any.

    Raises:
        RecipeError: one is given without the other, or has no valid value; the URL is not one.
        TemplateError: the template cannot be used.
    """
    more = {
        "judge_template": judge_template,
        "judge_max_tokens": judge_max_tokens,
        "price_in": price_in,
        "price_out": price_out,
    }
    given_more = [name for name, value in more.items() if value is not None]
    if url is None and model is None:
        if given_more:
            raise RecipeError("has no effect without a judge", "Name a judge, or leave it out.", field=given_more[0])
        return None
    if url is None or model is None:
        given, missing = ("a judge's model", "judge") if url is None else ("a judge's endpoint", "judge_model")
        raise RecipeError(
            f"{given} is named without its {'endpoint' if url is None else 'model'}", "Name both.", field=missing
        )
    if not model.strip():
        raise RecipeError("is blank, and verdicts need a judge's name", "Write it.", field="judge_model")
    if (price_in is None) != (price_out is None):
        raise RecipeError("one price is given without the other", "Give both, or neither.", field=given_more[-1])
    for name in given_more:
        value = more[name]
        if isinstance(value, int | float) and not 0 <= value < math.inf:
            raise RecipeError(f"is {value}; it must be a finite number", "Change it.", field=name)
    settings = JudgeSettings(model, price_in=price_in, price_out=price_out)
    if judge_max_tokens is not None:
        settings = replace(settings, max_tokens=judge_max_tokens)
    return JudgeRequest(endpoint_url(url), settings, JudgeTemplate(judge_template))


def patience_of(timeout_s: float | None, attempts: int | None, at_once: int | None) -> Patience | None:
    """How endpoints are asked, by arguments of which some are given; None if none is.

    Raises:
        RecipeError: one has no valid value.
    """
    given = {"timeout_s": timeout_s, "attempts": attempts, "at_once": at_once}
    known = {name: value for name, value in given.items() if value is not None}
    return Patience(**known) if known else None  # type: ignore[arg-type]


def default_folder(candidate: str, baseline: str) -> Path:
    """evaluations/CANDIDATE-against-BASELINE, by the last parts of their names."""
    return FOLDER / f"{_short(candidate)}-against-{_short(baseline)}"


def _short(name: str) -> str:
    if "\0" in name:
        raise RecipeError(f"{name!r:.100} names no model: a name cannot hold NUL", "Write another name.")
    endpoint = endpoint_name(name)
    last = endpoint.model if endpoint is not None else Path(name).expanduser().resolve().name or name
    return re.sub(r"[^\w.\-]+", "-", last.removeprefix("embedded:").rpartition("/")[2]).strip("-.") or "model"
