"""The report of a reward model, which scores both answers of a pair without a reference model."""

from __future__ import annotations

from prefine.report.facts import RunFacts
from prefine.report.stages.preference import PreferenceReport


class RewardReport(PreferenceReport):
    """A reward model."""

    title = "Reward modelling"
    prints_its_warnings = True  # with the reasons of its readiness verdict
    ranking = "Its score is higher than the other answer’s."
    accuracy = "share of pairs whose preferred answer has the higher score"

    def against_length(self, facts: RunFacts) -> str:
        """What keeps the model from learning length."""
        return "Balance the lengths in the training data."

    def has_reference(self, facts: RunFacts) -> bool:
        """Never: scores are absolute."""
        return False

    def loss_unit(self, facts: RunFacts) -> str:
        """The unit of the loss chart."""
        return "training: the objective; held-out: log-loss, nats; chance is ln 2"
