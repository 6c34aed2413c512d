"""The guards section: limits on a run's figures, and what happens beyond them."""

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
    """One guard: it acts after its figure was beyond the limit for some steps in a row."""

    limit: float
    patience: Count = Field(1, description="steps in a row beyond the limit before it acts")
    action: Action = Field("warn", description="off, warn, stop (end on the last healthy weights) or roll_back")


class NonFiniteGuard(RecipeSection):
    """A loss or gradient that is not finite."""

    action: Literal["stop", "roll_back"] = Field("stop", description="stop with an error, or roll_back")


class GuardsSection(RecipeSection):
    """Limits that stop a run or roll it back to its last healthy checkpoint (docs/ppo.md)."""

    non_finite: NonFiniteGuard = NonFiniteGuard()
    max_rollbacks: Annotated[int, Field(ge=0)] = Field(
        3, description="after this many roll-backs, roll_back means stop"
    )
    learning_rate_factor: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="the learning rate is multiplied by this at a roll-back"
    )
    kl_factor: Annotated[float, Field(ge=1)] = Field(
        2.0, description="the KL coefficient is multiplied by this at a roll-back"
    )

    @property
    def may_go_back(self) -> bool:
        """Whether any guard can return to a saved step."""
        sections = [value for _, value in self if isinstance(value, GuardSection)]
        return self.non_finite.action == "roll_back" or any(s.action in ("stop", "roll_back") for s in sections)
