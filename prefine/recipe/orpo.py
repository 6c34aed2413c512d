"""The recipe of odds ratio preference optimisation."""

from __future__ import annotations

from pydantic import Field

from prefine.recipe.loading import RecipeSection
from prefine.recipe.sections import Positive, RunFolder, TrainingSection
from prefine.recipe.stage import WritingRecipe


class OrpoSection(RecipeSection):
    """The objective without a reference (prefine/objectives/orpo.py)."""

    beta: Positive = Field(0.1, description="weight of the odds-ratio loss, the paper's lambda")


class OrpoTrainingSection(TrainingSection):
    """Defaults for ORPO: a lower learning rate than SFT's, as rejected answers are pushed away."""

    learning_rate: Positive = 5e-5


class OrpoRecipe(WritingRecipe):
    """Odds ratio preference optimisation: SFT and preferences in one stage, without a reference."""

    run: RunFolder = "runs/orpo"
    training: OrpoTrainingSection = OrpoTrainingSection()
    orpo: OrpoSection = OrpoSection()
