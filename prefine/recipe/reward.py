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
