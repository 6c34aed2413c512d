"""What the report of a reward model adds: it scores both answers of a pair, and has no reference model."""

from __future__ import annotations

from prefine.report.facts import RunFacts
from prefine.report.stages.preference import PreferenceReport


class RewardReport(PreferenceReport):
    """A reward model."""

    title = "Reward modelling"
    prints_its_warnings = True  # as the reasons of its readiness verdict, with their levels
    ranking = "Its score is higher than the other answer’s."
    accuracy = "share of pairs whose preferred answer has the higher score"

    def has_reference(self, facts: RunFacts) -> bool:
        """Never: scores are absolute."""
        return False

    def loss_unit(self, facts: RunFacts) -> str:
        """What the numbers of the loss chart are."""
        return "training: the objective; held-out: log-loss, nats; a coin’s is ln 2"
