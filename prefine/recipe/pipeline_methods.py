"""The fields of a pipeline's stages that do not train: evaluate, export and report."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from prefine.recipe.loading import RecipeSection
from prefine.recipe.sections import LARGEST_SEED, LARGEST_TEMPERATURE, Count, PathText, Sources

_OF_JUDGES = ("judge_template", "judge_max_tokens", "price_in", "price_out")
OF_ENDPOINTS = ("timeout", "attempts", "at_once")
"""Fields that say how endpoints are asked, and change no answer."""
_ENDPOINTS = ("http://", "https://")

Price = Annotated[float, Field(ge=0)]
ModelNames = PathText | list[PathText]


def as_list(names: str | list[str] | None) -> list[str]:
    """The names of a field that may hold one, several or none."""
    return [] if names is None else [names] if isinstance(names, str) else list(names)


class EvaluateRecipe(RecipeSection):
    """Two models compared, as `prefine evaluate` does; a gate stops the export of its candidate."""

    candidate: PathText = Field(description="stage:NAME, a run, a folder, a hub id, embedded:… or an endpoint")
    against: PathText | None = Field(None, description="likewise; null: the model that the candidate began with")
    prompts: Sources | None = Field(None, description="files; null: the prompts that the candidate's run held out")
    limit: Count | None = Field(None, description="at most so many prompts, evenly spaced; null: all")
    reward: PathText | None = Field(None, description="a reward model that judges; null: the one of a PPO run")
    judge: str | None = Field(None, description="endpoint of a language model that judges, with judge_model")
    judge_model: str | None = Field(None, description="the judge's name at its endpoint")
    judge_template: PathText | None = Field(None, description="a file with the text that asks the judge; null: our own")
    judge_max_tokens: Count | None = Field(None, description="the longest reply of the judge; null: 1,024 tokens")
    price_in: Price | None = Field(None, description="the judge's price of a million prompt tokens, with price_out")
    price_out: Price | None = Field(None, description="the judge's price of a million tokens of replies")
    timeout: Annotated[float, Field(ge=0.1, le=86_400)] | None = Field(
        None, description="seconds of a request to an endpoint; null: 60"
    )
    attempts: Annotated[int, Field(ge=1, le=100)] | None = Field(
        None, description="of a request to an endpoint, with growing waits; null: 6"
    )
    at_once: Annotated[int, Field(ge=1, le=256)] | None = Field(
        None, description="at most so many requests to an endpoint at once; null: 8"
    )
    reference: PathText | None = Field(None, description="of the KL divergence; null: the baseline")
    pairs: Sources | None = Field(None, description="preference pairs; null: those that the run held out")
    demonstrations: Sources | None = Field(None, description="for perplexity; null: those that the run held out")
    regression: bool = Field(True, description="run the bundled regression set on both models")
    lm_eval: list[str] = Field([], description="tasks of lm-eval-harness, or their YAML files")
    gate: PathText | dict[str, Any] | None = Field(
        None, description="the rules that the candidate must pass, or a YAML file with them"
    )
    samples: Count = Field(1, description="answers to each prompt")
    max_new_tokens: Count = 256
    temperature: Annotated[float, Field(ge=0, le=LARGEST_TEMPERATURE)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = Field(0, description="0: all tokens")
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED)] = Field(0, description="of the first answer")
    slots: Count = Field(64, description="answers generated at once")
    chat_template: PathText | None = None
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"

    @model_validator(mode="after")
    def _judge_is_whole(self) -> EvaluateRecipe:
        if (self.judge is None) != (self.judge_model is None):
            missing = "judge" if self.judge is None else "judge_model"
            raise ValueError(f"{missing} is missing: a judge has an endpoint, judge, and a name there, judge_model")
        if (self.price_in is None) != (self.price_out is None):
            missing = "price_in" if self.price_in is None else "price_out"
            raise ValueError(f"{missing} is missing: prices are those of tokens in both directions")
        return self

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> EvaluateRecipe:
        given = [name for name in _OF_JUDGES if getattr(self, name) is not None]
        if given and self.judge is None:
            raise ValueError(f"{given[0]} has no effect without a judge; leave it out, or set judge and judge_model")
        given = [name for name in OF_ENDPOINTS if getattr(self, name) is not None]
        models = [each for each in (self.candidate, self.against, self.reference) if each is not None]
        if given and self.judge is None and not any(each.startswith(_ENDPOINTS) for each in models):
            raise ValueError(f"{given[0]} has no effect, as neither a model nor a judge is an endpoint; leave it out")
        return self


class ExportRecipe(RecipeSection):
    """A model written in formats that others load, as `prefine export` does."""

    model: PathText = Field(description="stage:NAME, a run, a folder, a hub id or embedded:…")
    to: Annotated[str, Field(min_length=1)] | Annotated[list[str], Field(min_length=1)] = Field(
        "merged", description="formats of docs/export.md, types after a colon: [merged, 'gguf:q4_k_m']"
    )
    dtype: str | None = Field(None, description="of saved weights; null: as the base is stored")
    force: bool = Field(False, description="keep an export that is not what was trained; it is marked so")

    @model_validator(mode="after")
    def _formats_differ(self) -> ExportRecipe:
        formats = as_list(self.to)
        if twice := sorted({each for each in formats if formats.count(each) > 1}):
            raise ValueError(f"to names {twice[0]!r} twice; name each format once")
        return self


class ReportRecipe(RecipeSection):
    """Runs compared on one page, as `prefine report` does."""

    runs: ModelNames | None = Field(
        None, description="stage:NAME of training stages, or runs; null: all training stages of the pipeline"
    )
