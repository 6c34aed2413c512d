"""Base classes of the recipes of all training stages."""

from __future__ import annotations

from pydantic import Field, model_validator

from prefine.recipe.guards import GuardsSection
from prefine.recipe.loading import RecipeSection
from prefine.recipe.sections import DataSection, LoraSection, ModelSection, ReportSection, RunFolder, TrainingSection


class StageRecipe(RecipeSection):
    """Fields of all training stages."""

    run: RunFolder = Field(description="the run's folder; the run makes it")
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
    """A stage whose model generates text: its report shows samples."""

    report: ReportSection = ReportSection()
