"""The report of an ORPO run: pairs without a reference, and the two losses it adds."""

from __future__ import annotations

from prefine.report.charts import Chart, drawn, metric_chart
from prefine.report.facts import RunFacts
from prefine.report.stages.preference import PreferenceReport


class OrpoReport(PreferenceReport):
    """ORPO."""

    title = "Odds ratio preference optimisation"

    def against_a_fall(self, facts: RunFacts) -> str:
        """What keeps the chosen answers likely."""
        return "use a smaller learning rate or a smaller orpo.beta"

    def has_reference(self, facts: RunFacts) -> bool:
        """Never."""
        return False

    def loss_unit(self, facts: RunFacts) -> str:
        """The unit of the loss chart."""
        return "chosen answer’s NLL per token + orpo.beta × odds-ratio loss"

    def charts(self, facts: RunFacts) -> list[Chart]:
        """As of pairs, and the two losses."""
        losses = drawn(
            metric_chart(facts, "loss_nll", "Supervised loss", "chosen answer’s mean token NLL, nats"),
            metric_chart(facts, "loss_odds_ratio", "Odds-ratio loss", "−log σ(log odds ratio); ln 2 at equal odds"),
        )
        return [*super().charts(facts), *losses]
