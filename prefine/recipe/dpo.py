"""The recipe of direct preference optimisation and its variants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from prefine.recipe.guards import GuardSection, GuardsSection
from prefine.recipe.loading import RecipeSection
from prefine.recipe.sections import Count, Positive, RunFolder, TrainingSection
from prefine.recipe.stage import WritingRecipe

# Each loss gives beta another unit. DPO's 0.1 is that of Rafailov et al. 2023 (arXiv 2305.18290, app. B), kept by its
# variants on summed log-ratios. IPO's tau is one of the 0.1, 0.5 and 1 of Azar et al. 2023 (arXiv 2310.12036, sec. 5):
# on means over tokens the target 1 / (2 tau) is in nats a token, and only the last asks for what a model can reach.
# SimPO's is from Meng et al. 2024 (arXiv 2405.14734: 2 to 2.5, gamma / beta about 0.5). DPO on means over tokens takes
# the 5 of Lambert et al. 2024 (arXiv 2411.15124).
_BETAS = {"ipo": 1.0, "simpo": 2.0}
_BETA = 0.1
_BETA_OF_MEANS = 5.0
_SIMPO_MARGIN = 1.0
_OF_MEANS = {"ipo", "sft"}  # losses that compare means over tokens, or nothing


Loss = Literal["sigmoid", "conservative", "robust", "hinge", "ipo", "bco_pair", "simpo", "function"]
# Simpo has another beta and no reference, and a user's function can add terms itself.
AddedLoss = Literal["sigmoid", "conservative", "robust", "hinge", "ipo", "bco_pair", "sft"]
# A value of the wrong form has one error then, not one of each form.
OneOrSeveral = Annotated[
    Annotated[Loss, Tag("one")] | Annotated[dict[AddedLoss, Positive], Tag("several")],
    Discriminator(lambda value: "several" if isinstance(value, dict) else "one"),
]


class DpoSection(RecipeSection):
    """The preference objective (prefine/objectives/dpo.py)."""

    loss: OneOrSeveral = Field(
        "sigmoid",
        description="function: the one that prefine.dpo(objective=…) is given (docs/python.md); a mapping adds several "
        "with weights, also sft, the chosen answer's mean token NLL: {sigmoid: 0.8, bco_pair: 0.2, sft: 1.0}",
    )
    beta: Positive = Field(
        _BETA,
        description="strength of the pull towards the reference; where the recipe sets none it is 2.0 for simpo, 1.0 "
        "for ipo (its tau), 5.0 for the others with length_normalized, else 0.1; "
        "ipo together with them has no default",
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
        means, loss = values.get("length_normalized") is True, values.get("loss")
        names = loss.keys() if isinstance(loss, dict) else {str(loss)}
        others = _BETA_OF_MEANS if means else _BETA
        if "ipo" in names and not names <= _OF_MEANS:
            raise ValueError(
                f"beta is not set with loss {loss}: alone, ipo's is {_BETAS['ipo']} and that of the others {others}; "
                "set the one that all of them use"
            )
        return {**values, "beta": _BETAS["ipo"] if "ipo" in names else _BETAS.get(str(loss), others)}

    @field_validator("loss", mode="before")
    @classmethod
    def _several_have_weights(cls, value: Any) -> Any:
        if isinstance(value, list):
            raise ValueError("several losses are written with their weights: {sigmoid: 1.0, sft: 0.5}")
        return value

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each loss by name."""
        return {self.loss: 1.0} if isinstance(self.loss, str) else dict(self.loss.items())

    @property
    def compares_means(self) -> bool:
        """Whether margins are of means over tokens, not of sums over answers."""
        return self.length_normalized or self.loss == "simpo" or self.weights.keys() <= _OF_MEANS

    @model_validator(mode="after")
    def _several_are_several(self) -> DpoSection:
        if isinstance(self.loss, str):
            return self
        if len(self.loss) < 2:
            raise ValueError(f"loss {self.loss} is a mapping of one: write several losses with weights, or one name")
        if not self.loss.keys() - {"sft"}:
            raise ValueError("loss holds sft only: prefine sft trains that")
        if self.nll_weight:
            raise ValueError(f"nll_weight is {self.nll_weight} with several losses: give sft this weight among them")
        return self

    @model_validator(mode="after")
    def _normalising_has_a_use(self) -> DpoSection:
        if self.loss == "function" and self.length_normalized:
            raise ValueError("length_normalized is true with loss 'function', which gets sums and lengths")
        if self.length_normalized and self.weights.keys() <= _OF_MEANS and not isinstance(self.loss, str):
            raise ValueError("length_normalized is true with ipo and sft, which are means over tokens anyway")
        return self

    @model_validator(mode="after")
    def _simpo_margin_has_a_use(self) -> DpoSection:
        if self.loss != "simpo" and self.simpo_margin != _SIMPO_MARGIN:
            raise ValueError(f"simpo_margin is {self.simpo_margin} with loss {self.loss!r}: only simpo uses it")
        return self

    @model_validator(mode="after")
    def _smoothing_has_a_use(self) -> DpoSection:
        smoothed = not self.weights.keys().isdisjoint(("conservative", "robust"))
        if smoothed != (self.label_smoothing > 0):
            raise ValueError(
                f"label_smoothing is {self.label_smoothing} with loss {self.loss!r}: "
                "conservative and robust need it above 0, the others do not use it"
            )
        return self


def keeps_chosen_likely(loss: object) -> str:
    """The setting that keeps chosen answers likely with a value of dpo.loss."""
    if not isinstance(loss, Mapping):
        return "dpo.nll_weight"
    return "a larger weight of sft in dpo.loss" if "sft" in loss else "a weight of sft in dpo.loss"


class DpoTrainingSection(TrainingSection):
    """Defaults for DPO: a lower learning rate, as DPO changes a model quickly."""

    learning_rate: Positive = 5e-5


class ChosenFallGuard(GuardSection):
    """Fall of the chosen answers' mean log-probability below the reference's, nats an answer, above the limit."""

    limit: float = 25.0
    patience: Count = 5


class DpoGuards(GuardsSection):
    """Guards of DPO: those of every stage, and one on the chosen answers."""

    chosen_fall: ChosenFallGuard = ChosenFallGuard()


class DpoRecipe(WritingRecipe):
    """Direct preference optimisation."""

    run: RunFolder = "runs/dpo"
    training: DpoTrainingSection = DpoTrainingSection()
    guards: DpoGuards = DpoGuards()
    dpo: DpoSection = DpoSection()
