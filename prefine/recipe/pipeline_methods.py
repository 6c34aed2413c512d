"""The fields of a pipeline's stages that do not train: evaluate, export and report."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from prefine.recipe.loading import RecipeSection
from prefine.recipe.sections import LARGEST_SEED, LARGEST_TEMPERATURE, Count, PathText, Sources

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
    reference: PathText | None = Field(None, description="of the KL divergence; null: the baseline")
    pairs: Sources | None = Field(None, description="preference pairs; null: those that the run held out")
    demonstrations: Sources | None = Field(None, description="for perplexity; null: those that the run held out")
    regression: bool = Field(True, description="run the bundled regression set on both models")
    lm_eval: list[str] = Field([], description="tasks of lm-eval-harness, or their YAML files")
    gate: PathText | None = Field(None, description="a YAML file with the rules that the candidate must pass")
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
