"""The recipe of supervised fine-tuning."""

from __future__ import annotations

from prefine.recipe.sections import RunFolder
from prefine.recipe.stage import WritingRecipe


class SftRecipe(WritingRecipe):
    """Supervised fine-tuning."""

    run: RunFolder = "runs/sft"
