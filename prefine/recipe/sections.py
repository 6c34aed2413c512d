"""What a recipe may say: one pydantic model a stage, every field with its unit, its default and its rule.

Recipes are YAML (see prefine/recipes); `prefine.recipe.loading` reads and checks them against these models.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from prefine.errors import RecipeError
from prefine.paths import new_folder, path_in_recipe
from prefine.recipe.effects import SeveralRulesError, Unread, without_effect
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
        raise RecipeError(
            f"{first['input']!r:.80}: {rule}", f"{remedy.capitalize()}.", field=f"model.{field}"
        ) from None


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


def _off_is_a_word(value: object) -> object:
    """YAML reads a bare off as false."""
    return "off" if value is False else value


Action = Annotated[Literal["off", "warn", "stop", "roll_back"], BeforeValidator(_off_is_a_word)]


class GuardSection(RecipeSection):
    """One guard: beyond its limit for so many steps in a row, it acts."""

    limit: float
    patience: Count = Field(1, description="steps in a row beyond the limit before it acts")
    action: Action = Field("warn", description="off, warn, stop (end on the last healthy weights) or roll_back")


class NonFiniteGuard(RecipeSection):
    """A loss or gradient that is no number."""

    action: Literal["stop", "roll_back"] = Field("stop", description="stop with an error, or roll_back")


class GuardsSection(RecipeSection):
    """What stops a run, or takes it back to its last healthy checkpoint (docs/ppo.md)."""

    non_finite: NonFiniteGuard = NonFiniteGuard()
    max_rollbacks: Annotated[int, Field(ge=0)] = Field(3, description="after so many, roll_back means stop")
    learning_rate_factor: Annotated[float, Field(gt=0, le=1)] = Field(0.5, description="of the rate, at a roll-back")
    kl_factor: Annotated[float, Field(ge=1)] = Field(2.0, description="of the KL coefficient, at a roll-back")

    @property
    def may_go_back(self) -> bool:
        """Whether a guard may take a run to a step that was saved."""
        sections = [value for _, value in self if isinstance(value, GuardSection)]
        return self.non_finite.action == "roll_back" or any(s.action in ("stop", "roll_back") for s in sections)


class StageRecipe(RecipeSection):
    """What all training stages share."""

    run: RunFolder = Field(description="the run's folder, made by the run")
    model: ModelSection = ModelSection()
    lora: LoraSection | None = LoraSection()
    data: DataSection = DataSection()
    training: TrainingSection = TrainingSection()
    guards: GuardsSection = GuardsSection()

    @model_validator(mode="after")
    def _quantised_needs_lora(self) -> StageRecipe:
        if self.model.quantization != "none" and self.lora is None:
            raise ValueError(f"model.quantization {self.model.quantization!r} needs lora: frozen weights do not learn")
        return self


class WritingRecipe(StageRecipe):
    """A stage whose model writes: its report shows samples."""

    report: ReportSection = ReportSection()


class SftRecipe(WritingRecipe):
    """Supervised fine-tuning."""

    run: RunFolder = "runs/sft"


# Each loss gives beta another unit. DPO's 0.1 is that of Rafailov et al. 2023 (arXiv 2305.18290, app. B), kept by its
# variants on summed log-ratios. IPO's tau is one of the 0.1, 0.5 and 1 of Azar et al. 2023 (arXiv 2310.12036, sec. 5):
# on means over tokens the target 1 / (2 tau) is in nats a token, and only the last asks for what a model can reach.
# SimPO's is from Meng et al. 2024 (arXiv 2405.14734: 2 to 2.5, gamma / beta about 0.5). DPO on means over tokens takes
# the 5 of Lambert et al. 2024 (arXiv 2411.15124).
_BETAS = {"ipo": 1.0, "simpo": 2.0}
_BETA = 0.1
_BETA_OF_MEANS = 5.0
_SIMPO_MARGIN = 1.0


class DpoSection(RecipeSection):
    """The preference objective (prefine/objectives/dpo.py)."""

    loss: Literal["sigmoid", "conservative", "robust", "hinge", "ipo", "simpo", "function"] = Field(
        "sigmoid", description="function: the one that prefine.dpo(objective=…) is given (docs/python.md)"
    )
    beta: Positive = Field(
        _BETA,
        description="strength of the pull towards the reference; where the recipe sets none it is 2.0 for simpo, 1.0 "
        "for ipo (its tau), 5.0 for the others with length_normalized, else 0.1",
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        0.0, description="share of flipped labels that conservative and robust assume"
    )
    simpo_margin: Annotated[float, Field(ge=0)] = Field(_SIMPO_MARGIN, description="gamma of simpo, nats")
    nll_weight: Annotated[float, Field(ge=0)] = Field(0.0, description="of the chosen answer's mean token NLL")
    length_normalized: bool = Field(
        False, description="divide log-probabilities by answer tokens (ipo, simpo always do)"
    )

    @model_validator(mode="before")
    @classmethod
    def _beta_of_the_loss(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "beta" in values:
            return values
        means = values.get("length_normalized") is True
        beta = _BETAS.get(str(values.get("loss")), _BETA_OF_MEANS if means else _BETA)
        return {**values, "beta": beta}

    @model_validator(mode="after")
    def _normalising_has_a_use(self) -> DpoSection:
        if self.loss == "function" and self.length_normalized:
            raise ValueError("length_normalized is true with loss 'function', which is given sums and lengths")
        return self

    @model_validator(mode="after")
    def _simpo_margin_has_a_use(self) -> DpoSection:
        if self.loss != "simpo" and self.simpo_margin != _SIMPO_MARGIN:
            raise ValueError(f"simpo_margin is {self.simpo_margin} with loss {self.loss!r}: only simpo uses it")
        return self

    @model_validator(mode="after")
    def _smoothing_has_a_use(self) -> DpoSection:
        smoothed = self.loss in ("conservative", "robust")
        if smoothed != (self.label_smoothing > 0):
            raise ValueError(
                f"label_smoothing is {self.label_smoothing} with loss {self.loss!r}: "
                "conservative and robust need it above 0, the others do not use it"
            )
        return self


class DpoTrainingSection(TrainingSection):
    """As for the other stages, but gentler: DPO moves a model quickly."""

    learning_rate: Positive = 5e-5


class ChosenFallGuard(GuardSection):
    """Fall of the chosen answers' mean log-probability below the reference's, nats an answer, above the limit."""

    limit: float = 25.0
    patience: Count = 5


class DpoGuards(GuardsSection):
    """Of DPO: those of every stage, and one on the chosen answers."""

    chosen_fall: ChosenFallGuard = ChosenFallGuard()


class DpoRecipe(WritingRecipe):
    """Direct preference optimisation."""

    run: RunFolder = "runs/dpo"
    training: DpoTrainingSection = DpoTrainingSection()
    guards: DpoGuards = DpoGuards()
    dpo: DpoSection = DpoSection()


class RewardSection(RecipeSection):
    """The reward model's objective (prefine/objectives/reward.py)."""

    loss: Literal["bradley_terry", "hinge"] = "bradley_terry"
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        0.0, description="share of flipped labels that the loss assumes"
    )
    margins: Literal["none", "column", "scores"] = Field(
        "column",
        description="how far apart two scores should lie: column: as the column margin says; scores: where there is "
        "none, by the pair's two scores, whose mean difference counts as 1",
    )
    margin_scale: Positive = Field(1.0, description="margins are multiplied by this, nats")
    centring_weight: Annotated[float, Field(ge=0)] = Field(0.01, description="of (r_chosen + r_rejected)²")
    heads: Annotated[int, Field(ge=1, le=16)] = Field(
        1, description="score heads; each leaves out its own share of the pairs, so that they can disagree"
    )


class ReadinessSection(RecipeSection):
    """Thresholds of the readiness report (docs/reward.md): what makes a reward model unfit for PPO, or doubtful."""

    min_pairs: Count = Field(50, description="fewer held-out pairs: caution")
    min_accuracy: Fraction = Field(0.65, description="held-out accuracy below: caution; not above 0.5 for sure: no-go")
    max_calibration_error: Fraction = Field(0.15, description="expected calibration error above: caution")
    max_length_excess: Fraction = Field(
        0.2, description="picks the longer answer more often than people do by more than this: caution"
    )
    max_accuracy_gap: Fraction = Field(0.2, description="train accuracy above held-out by more than this: caution")
    max_fooled: Fraction = Field(0.2, description="share of spoilt answers that gain by it above: caution")
    max_fooled_no_go: Fraction = Field(0.5, description="blank and stuck answers that beat real ones above: no-go")
    max_suspects: Fraction = Field(0.1, description="share of labels that look flipped above: caution")
    suspect_probability: Fraction = Field(0.4, description="a label that the model gives less than this is suspected")
    heldout_pairs: Count = Field(1000, description="at most so many held-out rows are scored again, at even distances")
    trained_pairs: Count = Field(
        200,
        description="at most so many rows learned from are scored again, for the gap and for flipped labels: raise it "
        "to look through more labels",
    )
    max_variance: Positive = Field(
        0.1, description="of a score with padding or company, in standard deviations, above: caution"
    )
    max_variance_no_go: Positive = Field(0.5, description="the same, above: no-go")


class RewardTrainingSection(TrainingSection):
    """As for the other stages, but held to the held-out loss: reward models overfit soon."""

    keep_best: bool = True
    early_stopping_patience: Count | None = 3


class RewardRecipe(StageRecipe):
    """A reward model."""

    run: RunFolder = "runs/reward"
    training: RewardTrainingSection = RewardTrainingSection()
    reward: RewardSection = RewardSection()
    readiness: ReadinessSection = ReadinessSection()

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> RewardRecipe:
        rule = Unread(self.reward.margins == "none", ("reward.margin_scale",), "reward.margins is none", "it to column")
        if unread := without_effect(self, [rule]):
            raise SeveralRulesError(unread)
        return self
