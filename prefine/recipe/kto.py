"""The recipe of Kahneman-Tversky optimisation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from prefine.recipe.loading import RecipeSection
from prefine.recipe.sections import DataSection, Positive, RunFolder, Sources, TrainingSection
from prefine.recipe.stage import WritingRecipe


class KtoSection(RecipeSection):
    """The objective on votes (prefine/objectives/kto.py)."""

    loss: Literal["kto", "apo_zero_unpaired"] = Field(
        "kto", description="apo_zero_unpaired: without the KL baseline, which saves its forward passes"
    )
    beta: Positive = Field(0.1, description="strength of the pull towards the reference")
    desirable_weight: Positive = Field(1.0, description="of the losses of answers with a thumb up")
    undesirable_weight: Positive = Field(1.0, description="of the losses of answers with a thumb down")


class KtoDataSection(DataSection):
    """Defaults for KTO: votes."""

    train: Sources = Field("sample:support_desk/votes", description="files, folders, dataset ids or sample:…")


class KtoTrainingSection(TrainingSection):
    """Defaults for KTO: a lower learning rate, as for DPO."""

    learning_rate: Positive = 5e-5


class KtoRecipe(WritingRecipe):
    """Kahneman-Tversky optimisation: learns from votes on single answers."""

    run: RunFolder = "runs/kto"
    data: KtoDataSection = KtoDataSection()
    training: KtoTrainingSection = KtoTrainingSection()
    kto: KtoSection = KtoSection()

    @model_validator(mode="after")
    def _steps_have_a_baseline(self) -> KtoRecipe:
        if self.kto.loss == "kto" and self.training.batch_size < 2:
            raise ValueError(
                "training.batch_size is 1 with kto.loss 'kto', whose baseline pairs each prompt with the answer of "
                "another one in the step: set it to 2 or more, or kto.loss to apo_zero_unpaired"
            )
        return self
