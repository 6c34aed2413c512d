"""What watches a run and acts on it: the guards section."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from prefine.recipe.loading import RecipeSection
from prefine.recipe.sections import Count


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
