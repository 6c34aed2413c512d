"""Recipe sections of several stages: every field with its unit, default and rule."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

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
LARGEST_TEMPERATURE = 1000  # at this temperature the distribution is uniform
Count = Annotated[int, Field(ge=1, le=LARGEST_COUNT)]
PathText = Annotated[str, AfterValidator(path_in_recipe)]
Sources = PathText | list[PathText]
RunFolder = Annotated[str, AfterValidator(new_folder)]


class ModelSection(RecipeSection):
    """The model to train, and how it is held in memory."""

    name: PathText = Field("embedded:smollm2-135m", description="a folder, a hub id, a run (runs/NAME) or embedded:…")
    revision: str | None = Field(None, description="hub revision: branch, tag or commit")
    chat_template: PathText | None = Field(
        None, description="null: the tokenizer's own; plain; or a path to a Jinja file"
    )
    template_kwargs: TemplateSettings = Field(
        {}, description="variables of the chat template, saved with it, such as {enable_thinking: false}"
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1 or mps")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto measures which is faster")
    quantization: Literal["none", "nf4", "int8"] = Field("none", description="of frozen weights, by bitsandbytes")
    attn_implementation: Literal["auto", "flash_attention_2", "sdpa", "eager"] = Field(
        "auto", description="auto: packed where the model allows; sdpa and eager: padded rows"
    )
    gradient_checkpointing: bool = Field(False, description="recompute layers in the backward pass to save memory")
    trust_remote_code: bool = Field(False, description="run Python code that comes with the model")


def named_model(name: str, **settings: Any) -> ModelSection:
    """The section for a model that is named by a command, not by a recipe.

    Raises:
        RecipeError: no file can have that name.
    """
    try:
        return ModelSection(name=name, **settings)
    except ValidationError as error:
        first = error.errors()[0]
        rule, _, remedy = first["msg"].removeprefix("Value error, ").partition("; ")
        field = ".".join(map(str, first["loc"]))
        remedy = remedy.capitalize() or "Choose one of these"
        raise RecipeError(f"{first['input']!r:.80}: {rule}", f"{remedy}.", field=f"model.{field}") from None


def _adapter_start(value: str) -> str:
    if not re.fullmatch(r"default|pissa|pissa_niter_[1-9]\d{0,2}", value):
        raise ValueError("write default, pissa or pissa_niter_N, for example pissa_niter_4")
    return value


class LoraSection(RecipeSection):
    """Low-rank adapters (Hu et al. 2021). `lora: null` in a recipe trains all weights instead."""

    r: Annotated[int, Field(ge=1, le=16_384)] = 16
    alpha: Positive = 32.0
    dropout: Fraction = 0.0
    targets: str | list[str] = Field("all-linear", description="module names, or all-linear (all but the head)")
    rslora: bool = Field(
        False, description="rank-stabilised: scale by alpha / sqrt(r) in place of alpha / r (arXiv 2312.03732)"
    )
    dora: bool = Field(False, description="train magnitudes and directions of weights apart (arXiv 2402.09353); slower")
    init: Annotated[str, AfterValidator(_adapter_start)] = Field(
        "default",
        description="pissa: start on the r principal components of each weight (arXiv 2404.02948); pissa_niter_N: "
        "found in N passes, which is faster; saved as an adapter of rank 2 r on the original base",
    )

    @property
    def on_principal(self) -> bool:
        """Whether the adapter starts on the principal components of the weights."""
        return self.init != "default"

    @model_validator(mode="after")
    def _principal_components_are_whole(self) -> LoraSection:
        if self.on_principal and self.dropout:
            raise ValueError(
                f"dropout {self.dropout:g} would drop the principal components that init {self.init} starts on: set it "
                "to 0, or init to default"
            )
        return self


class DataSection(RecipeSection):
    """The data of a run."""

    train: Sources = Field("sample:support_desk/preferences", description="files, folders, dataset ids or sample:…")
    split: str = Field("train", description="split of a Hugging Face dataset")
    heldout: Sources | None = Field(None, description="sources to evaluate on; null: split off from train")
    heldout_split: str = "test"
    delimiter: Annotated[str, AfterValidator(delimiter_named)] | None = Field(
        None, description="delimiter of .csv and .tsv files: ',', ';', '|' or tab; null: detected"
    )
    encoding: Annotated[str, AfterValidator(encoding_named)] | None = Field(
        None, description="encoding of text files, such as cp1252 or utf-16; null: UTF-8, or by a byte order mark"
    )
    columns: dict[str, str | None] = Field(
        {}, description="column of the file for a name of the format: {prompt: question}; null: ignore that column"
    )
    pairs: PairRule = Field(
        "best_worst", description="pairs of several ranked or scored answers: best with worst, neighbours, or all"
    )
    heldout_fraction: Fraction = Field(0.1, description="share of prompts that is held out, each with all its rows")
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED)] = Field(
        0, description="seed for held-out rows and for limit; the same in all stages that share data"
    )
    limit: Count | None = Field(
        None, description="learn from this many records, sampled by seed from all of data.train"
    )
    max_length_tokens: Annotated[int, Field(ge=8, le=LARGEST_COUNT)] = Field(
        1024, description="longest prompt and answer together; the oldest turns are dropped first"
    )
    deduplicate: bool = True
    max_dropped_fraction: Fraction = Field(0.5, description="stop if a larger share of records is dropped")

    @property
    def text_form(self) -> TextForm:
        """Delimiter and encoding of its text files."""
        return TextForm(self.delimiter, self.encoding)

    @property
    def row_rules(self) -> RowRules:
        """The rules for reading its rows."""
        return RowRules(self.columns, self.pairs)


class TrainingSection(RecipeSection):
    """Settings of the optimiser and of the loop."""

    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED)] = Field(
        0, description="seed of adapters, order, dropout and rollouts"
    )
    epochs: Positive = 1.0
    max_steps: Count | None = Field(None, description="stop after this many optimiser steps; overrides epochs")
    batch_size: Count = Field(
        8, description="most records of an optimiser step, over all processes; the steps of an epoch have equal sizes"
    )
    max_tokens_per_microbatch: Annotated[int, Field(ge=16, le=LARGEST_COUNT)] = Field(
        4096, description="memory use grows with this"
    )
    learning_rate: Positive = 1e-4
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_fraction: Fraction = Field(0.1, description="share of all steps in which the rate rises from 0")
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        0.0, description="weight decay of matrices and embeddings; none for norms and biases"
    )
    adam_betas: list[Fraction] = Field([0.9, 0.999], min_length=2, max_length=2)
    adam_epsilon: Positive = 1e-8
    max_grad_norm: Positive | None = 1.0
    evaluate_every_steps: Count | None = Field(25, description="null: only before and after training")
    save_every_steps: Count | None = Field(50, description="null: only at the end")
    keep_best: bool = Field(
        False, description="end with the weights of the lowest held-out loss; needs memory for a second copy"
    )
    early_stopping_patience: Count | None = Field(
        None, description="stop after this many evaluations in a row without a lower held-out loss; null: never"
    )
    keep_checkpoints: Count = 2
    log_every_steps: Count = 1
    trackers: list[Literal["wandb", "tensorboard", "trackio", "mlflow"]] = Field(
        [], description="besides metrics.jsonl, see docs/tracking.md; none by default"
    )
    tracker_project: Annotated[str, Field(min_length=1)] = Field(
        "prefine", description="project name in trackers; a run has the name of its folder, without runs/"
    )
    self_checks: bool = Field(True, description="check templates, masks, losses and saved weights")


class ReportSection(RecipeSection):
    """Samples generated before and after training for the report."""

    prompts: Sources | None = Field(None, description="prompts of the samples; null: held-out ones")
    samples: Annotated[int, Field(ge=0)] = 8
    max_new_tokens: Count = 160
    temperature: Annotated[float, Field(ge=0, le=LARGEST_TEMPERATURE)] = Field(
        0.0, description="0: greedy, the same text every time"
    )
