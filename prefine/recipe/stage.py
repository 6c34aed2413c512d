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

    @model_validator(mode="after")
    def _principal_components_fit(self) -> StageRecipe:
        if self.lora is None or not self.lora.on_principal:
            return self
        if self.model.quantization != "none":
            raise ValueError(
                f"lora.init {self.lora.init} needs whole weights, but model.quantization is {self.model.quantization}: "
                "set that to none, or lora.init to default"
            )
        if self.training.weight_decay:
            raise ValueError(
                f"training.weight_decay {self.training.weight_decay:g} would pull the weights that lora.init "
                f"{self.lora.init} starts on, and what it holds of them, towards 0: set it to 0"
            )
        return self


class WritingRecipe(StageRecipe):
    """A stage whose model generates text: its report shows samples."""

    report: ReportSection = ReportSection()
