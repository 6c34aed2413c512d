"""The sections that recipes of several stages have: every field with its unit, its default and its rule."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError

from prefine.errors import RecipeError
from prefine.paths import new_folder, path_in_recipe
from prefine.recipe.loading import RecipeSection
from prefine.recipe.template import TemplateSettings
from prefine.row_rules import PairRule, RowRules
from prefine.text_form import TextForm, delimiter_named, encoding_named

Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
LARGEST_SEED = 2**63 - 1
LARGEST_COUNT = 2**31 - 1
LARGEST_TEMPERATURE = 1000  # every token is as likely as any other there
Count = Annotated[int, Field(ge=1, le=LARGEST_COUNT)]
PathText = Annotated[str, AfterValidator(path_in_recipe)]
Sources = PathText | list[PathText]
RunFolder = Annotated[str, AfterValidator(new_folder)]


class ModelSection(RecipeSection):
    """Which model is refined, and how it is held in memory."""

    name: PathText = Field("embedded:smollm2-135m", description="a folder, a hub id, a run (runs/NAME) or embedded:…")
    revision: str | None = Field(None, description="hub revision: branch, tag or commit")
    chat_template: PathText | None = Field(
        None, description="null: the tokenizer's own; plain; or a path to a Jinja file"
    )
    template_kwargs: TemplateSettings = Field(
        {}, description="variables of the chat template, saved with it: {enable_thinking: false}, say"
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1 or mps")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto measures which is faster")
    quantization: Literal["none", "nf4", "int8"] = Field("none", description="of frozen weights, by bitsandbytes")
    attn_implementation: Literal["auto", "flash_attention_2", "sdpa", "eager"] = Field(
        "auto", description="auto: packed where the model allows; sdpa and eager: padded rows"
    )
    gradient_checkpointing: bool = Field(False, description="recompute layers in the backward pass: less memory")
    trust_remote_code: bool = Field(False, description="run Python code that comes with the model")


def named_model(name: str, **settings: Any) -> ModelSection:
    """A model that a command names instead of a recipe.

    Raises:
        RecipeError: a name that no file can have.
    """
    try:
        return ModelSection(name=name, **settings)
    except ValidationError as error:
        first = error.errors()[0]
        rule, _, remedy = first["msg"].removeprefix("Value error, ").partition("; ")
        field = ".".join(map(str, first["loc"]))
        remedy = remedy.capitalize() or "Choose one of these"
        raise RecipeError(f"{first['input']!r:.80}: {rule}", f"{remedy}.", field=f"model.{field}") from None


class LoraSection(RecipeSection):
    """Low-rank adapters (Hu et al. 2021). `lora: null` in a recipe trains all weights instead."""

    r: Annotated[int, Field(ge=1, le=16_384)] = 16
    alpha: Positive = 32.0
    dropout: Fraction = 0.0
    targets: str | list[str] = Field("all-linear", description="module names, or all-linear (all but the head)")


class DataSection(RecipeSection):
    """What is learned from."""

    train: Sources = Field("sample:support_desk/preferences", description="files, folders, data set ids or sample:…")
    split: str = Field("train", description="split of a Hugging Face data set")
    heldout: Sources | None = Field(None, description="sources to evaluate on; null splits them off train")
    heldout_split: str = "test"
    delimiter: Annotated[str, AfterValidator(delimiter_named)] | None = Field(
        None, description="between the cells of .csv and .tsv files: ',', ';', '|' or tab; null finds it out"
    )
    encoding: Annotated[str, AfterValidator(encoding_named)] | None = Field(
        None, description="of text files, as in cp1252 or utf-16; null: UTF-8, or what a byte order mark says"
    )
    columns: dict[str, str | None] = Field(
        {}, description="the file's column by the name of a format: {prompt: question}; null leaves a column unread"
    )
    pairs: PairRule = Field(
        "best_worst", description="of several ranked or scored answers: the best with the worst, neighbours, or all"
    )
    heldout_fraction: Fraction = Field(0.1, description="share of prompts (all rows of a prompt together) held out")
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED)] = Field(
        0, description="of what is held out and what limit takes; stages that share data must share it"
    )
    limit: Count | None = Field(
        None, description="learn from so many records, drawn by the seed from all of data.train, which is read whole"
    )
    max_length_tokens: Annotated[int, Field(ge=8, le=LARGEST_COUNT)] = Field(
        1024, description="prompt and answer; the oldest turns go first"
    )
    deduplicate: bool = True
    max_dropped_fraction: Fraction = Field(0.5, description="stop when more records than this do not fit the length")

    @property
    def text_form(self) -> TextForm:
        """How its text files are written."""
        return TextForm(self.delimiter, self.encoding)

    @property
    def row_rules(self) -> RowRules:
        """How its rows are read."""
        return RowRules(self.columns, self.pairs)


class TrainingSection(RecipeSection):
    """How the optimiser goes about it."""

    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED)] = Field(
        0, description="of adapters, order, dropout and rollouts"
    )
    epochs: Positive = 1.0
    max_steps: Count | None = Field(None, description="stop after this many optimiser steps, whatever epochs says")
    batch_size: Count = Field(
        8, description="records an optimiser step at most, over all processes; an epoch's steps are of one size"
    )
    max_tokens_per_microbatch: Annotated[int, Field(ge=16, le=LARGEST_COUNT)] = Field(
        4096, description="memory follows this"
    )
    learning_rate: Positive = 1e-4
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_fraction: Fraction = Field(0.1, description="share of all steps over which the rate rises from 0")
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        0.0, description="of matrices, embeddings included; norms and biases have none"
    )
    adam_betas: list[Fraction] = Field([0.9, 0.999], min_length=2, max_length=2)
    adam_epsilon: Positive = 1e-8
    max_grad_norm: Positive | None = 1.0
    evaluate_every_steps: Count | None = Field(25, description="null: only before and after")
    save_every_steps: Count | None = Field(50, description="null: only at the end")
    keep_best: bool = Field(False, description="end with the weights of the lowest held-out loss; holds them twice")
    early_stopping_patience: Count | None = Field(
        None, description="stop after so many evaluations in a row without a lower held-out loss; null: never"
    )
    keep_checkpoints: Count = 2
    log_every_steps: Count = 1
    trackers: list[Literal["wandb", "tensorboard", "trackio", "mlflow"]] = Field(
        [], description="besides metrics.jsonl, see docs/training.md; none by default"
    )
    tracker_project: Annotated[str, Field(min_length=1)] = Field(
        "prefine", description="the project in trackers; a run's name there is its folder, without runs/"
    )
    self_checks: bool = Field(True, description="check templates, masks, losses and saved weights at the start")


class ReportSection(RecipeSection):
    """Samples written before and after for the report."""

    prompts: Sources | None = Field(None, description="prompts to sample on; null takes held-out ones")
    samples: Annotated[int, Field(ge=0)] = 8
    max_new_tokens: Count = 160
    temperature: Annotated[float, Field(ge=0, le=LARGEST_TEMPERATURE)] = Field(
        0.0, description="0 is greedy: the same text every time"
    )
