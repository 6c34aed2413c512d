"""The recipe of reward models and the thresholds of their readiness for PPO."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from prefine.recipe.effects import SeveralRulesError, Unread, without_effect
from prefine.recipe.loading import RecipeSection
from prefine.recipe.sections import Count, Fraction, Positive, RunFolder, TrainingSection
from prefine.recipe.stage import StageRecipe


class RewardSection(RecipeSection):
    """The reward model's objective (prefine/objectives/reward.py)."""

    loss: Literal["bradley_terry", "hinge"] = "bradley_terry"
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        0.0, description="share of flipped labels that the loss assumes"
    )
    margins: Literal["none", "column", "scores"] = Field(
        "column",
        description="target difference of the two scores; column: the column margin; scores: without it, the "
        "difference of the pair's scores, divided by the mean difference",
    )
    margin_scale: Positive = Field(1.0, description="margins are multiplied by this, nats")
    centring_weight: Annotated[float, Field(ge=0)] = Field(0.01, description="of (r_chosen + r_rejected)²")
    heads: Annotated[int, Field(ge=1, le=16)] = Field(
        1, description="score heads; each skips a different share of the pairs, so that they can disagree"
    )


class ReadinessSection(RecipeSection):
    """Thresholds of the readiness report (docs/reward.md): when a reward model is unfit for PPO, or doubtful."""

    min_pairs: Count = Field(50, description="fewer held-out pairs: caution")
    min_accuracy: Fraction = Field(0.65, description="held-out accuracy below: caution; interval not above 0.5: no-go")
    max_calibration_error: Fraction = Field(0.15, description="expected calibration error above: caution")
    max_length_excess: Fraction = Field(
        0.2, description="prefers the longer answer more often than people do, by more than this: caution"
    )
    max_accuracy_gap: Fraction = Field(0.2, description="train accuracy above held-out by more than this: caution")
    max_fooled: Fraction = Field(
        0.2, description="share of corrupted answers that score higher than the original above: caution"
    )
    max_fooled_no_go: Fraction = Field(
        0.5, description="share of blank and stuck answers that beat real ones above: no-go"
    )
    max_suspects: Fraction = Field(0.1, description="share of labels that look flipped above: caution")
    suspect_probability: Fraction = Field(
        0.4, description="labels with a lower probability under the model are suspected"
    )
    heldout_pairs: Count = Field(1000, description="most held-out rows that are scored again, evenly spaced")
    trained_pairs: Count = Field(
        200,
        description="most training rows that are scored again, for the gap and for flipped labels; raise it to check "
        "more labels",
    )
    max_variance: Positive = Field(
        0.1,
        description="change of a score by padding or other rows of the batch, in standard deviations, above: caution",
    )
    max_variance_no_go: Positive = Field(0.5, description="the same, above: no-go")


class RewardTrainingSection(TrainingSection):
    """Defaults for reward models: the weights of the lowest held-out loss are kept, as reward models overfit soon."""

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
