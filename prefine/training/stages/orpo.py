"""Odds ratio preference optimisation on pairs: policy log-probs, supervised loss, odds-ratio loss, mean."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from torch import nn

from prefine.data.tokens.trees import PackedBatch
from prefine.objectives import orpo
from prefine.objectives.dpo import chosen_nll
from prefine.objectives.masked import Paired
from prefine.recipe.orpo import OrpoRecipe
from prefine.records import Preference
from prefine.training.display import Display
from prefine.training.run.run_stage import run_stage
from prefine.training.run.session import Session
from prefine.training.run.stage import Stage
from prefine.training.stages.pairs import PairObjective, PairOutcome, Part


def run_orpo(recipe: OrpoRecipe, resume: bool, display: Display | Console) -> Path:
    """Optimise as the recipe says; returns the run's folder. Raises PrefineError."""
    return run_stage(OrpoStage(recipe), resume, display)


class OrpoStage(Stage[OrpoRecipe, Preference]):
    """Learns the chosen answers, and which of two answers people prefer."""

    name = "orpo"
    record_type = Preference

    def usable(self, record: Preference) -> bool:
        """A tie says nothing about which answer to prefer."""
        return not record.tie

    def start(self, session: Session[OrpoRecipe]) -> OrpoObjective:
        """There is no reference to compute."""
        return OrpoObjective(session)


class OrpoObjective(PairObjective[OrpoRecipe]):
    """The chosen answer's mean token NLL and the odds-ratio loss (Hong et al. 2024, eq. 6), a mean over pairs."""

    against_a_fall = "a smaller orpo.beta"

    def outcome(self, model: nn.Module, batch: PackedBatch, part: Part) -> PairOutcome:
        """The margin is the log odds ratio; the terms are the two losses."""
        policy, tokens = self._computed(model, batch)
        means = Paired(policy.chosen / tokens.chosen, policy.rejected / tokens.rejected)
        nll, odds = chosen_nll(policy.chosen, tokens.chosen), orpo.odds_ratio(means)
        return PairOutcome(
            loss=nll + self._session.recipe.orpo.beta * odds,
            margin=orpo.log_odds_ratio(means).detach(),
            policy=policy,
            tokens=tokens,
            terms={"nll": nll, "odds_ratio": odds},
        )
