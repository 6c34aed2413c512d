"""The interface between the report and a stage, with defaults for an unknown stage."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prefine.report.answers import answer_cautions, sample_tiles
from prefine.report.charts import Chart, drawn, loss_chart, training_chart
from prefine.report.facts import RunFacts
from prefine.report.loss import loss_headline, loss_rises, loss_tiles
from prefine.report.parts import Caution, Headline, ShareScale, Tile


class StageReport:
    """The parts of a report that depend on the stage.

    Attributes:
        title: the stage's name in full; empty for the name that the run recorded.
        has_token_loss: whether the held-out loss is the mean negative log-likelihood of a token, in nats.
        prints_its_warnings: whether a run of the stage prints its recorded warnings itself before it ends.
    """

    title = ""
    has_token_loss = False
    prints_its_warnings = False

    def headline(self, facts: RunFacts) -> Headline | None:
        """The main result on held-out data; None if nothing was measured."""
        return loss_headline(facts, token_loss=self.has_token_loss)

    def scales(self, facts: RunFacts) -> list[ShareScale]:
        """Shares with intervals, drawn below the headline."""
        return []

    def tiles(self, facts: RunFacts) -> list[Tile]:
        """Known key figures of the result."""
        return [*loss_tiles(facts, token_loss=self.has_token_loss), *sample_tiles(facts)]

    def charts(self, facts: RunFacts) -> list[Chart]:
        """How loss and quality changed over the steps; a chart without figures is left out."""
        return drawn(
            loss_chart(facts, self.loss_unit(facts)),
            training_chart(facts, "grad_norm", "Gradient norm", "before clipping"),
            training_chart(facts, "learning_rate", "Learning rate", "as scheduled"),
        )

    def loss_unit(self, facts: RunFacts) -> str:
        """The unit of the loss chart."""
        return "nats per token" if self.has_token_loss else "the objective’s own unit"

    def sections(self, facts: RunFacts) -> dict[str, Any]:
        """Further sections of the page, by the template's names; a section that is not named is left out."""
        return {}

    def cautions(self, facts: RunFacts) -> Iterator[Caution]:
        """Warnings based on the figures."""
        yield from loss_rises(facts)
        yield from answer_cautions(facts)
