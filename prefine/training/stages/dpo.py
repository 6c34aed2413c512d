"""Direct preference optimisation on pairs: policy log-probs, reference log-probs, losses, mean."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from torch import Tensor, nn

from prefine.data.tokens.trees import PackedBatch, collate, microbatches
from prefine.models.forward.packed import evaluating
from prefine.objectives import dpo
from prefine.objectives.masked import Paired
from prefine.recipe.dpo import DpoRecipe, DpoSection, keeps_chosen_likely
from prefine.records import Preference
from prefine.training.display import Display
from prefine.training.loop.guards import Limit
from prefine.training.run.checks import SelfCheck, check_first_loss, require
from prefine.training.run.run_stage import run_stage
from prefine.training.run.session import Session
from prefine.training.run.stage import Stage
from prefine.training.run.user_functions import UserFunction, function_hash, function_name
from prefine.training.stages.own_objective import PairLosses, check_objective, losses_of, require_objective
from prefine.training.stages.pairs import PairObjective, PairOutcome, Part
from prefine.training.stages.reference import reference_of_rows


def run_dpo(
    recipe: DpoRecipe, resume: bool, display: Display | Console, *, objective: PairLosses | None = None
) -> Path:
    """Optimise preferences as the recipe says; returns the run's folder. Raises PrefineError.

    Args:
        objective: computes the losses of pairs, if dpo.loss is function.
    """
    return run_stage(DpoStage(recipe, objective), resume, display)


def pair_outcome(
    section: DpoSection,
    policy: Paired,
    reference: Paired | None,
    tokens: Paired,
    objective: PairLosses | None = None,
) -> PairOutcome:
    """Losses and reward margins of pairs; `reference` is None only for SimPO, which has none.

    Args:
        objective: computes the losses if the section's loss is function.
    """
    means = _per_token(policy, tokens)
    beta = section.beta
    if reference is None:
        raw = means.chosen - means.rejected
        loss = dpo.simpo(means, beta, section.simpo_margin)
        return _outcome(section, policy, tokens, loss, beta * raw)
    against = _per_token(reference, tokens)
    raw = dpo.log_ratio_margin(*((means, against) if section.compares_means else (policy, reference)))
    fall = (reference.chosen - policy.chosen).detach()
    if objective is not None:
        loss = losses_of(objective, dpo.PairLogprobs(policy, reference, tokens, beta))
        return _outcome(section, policy, tokens, loss, beta * raw, fall)
    compared = (means, against) if section.length_normalized else (policy, reference)
    smoothing, ratios = (
        section.label_smoothing,
        Paired(*(ours - theirs for ours, theirs in zip(*compared, strict=True))),
    )
    computed: dict[str, Callable[[], Tensor]] = {
        "sigmoid": lambda: dpo.sigmoid(raw, beta),
        "conservative": lambda: dpo.conservative(raw, beta, smoothing),
        "robust": lambda: dpo.robust(raw, beta, smoothing),
        "hinge": lambda: dpo.hinge(raw, beta),
        "ipo": lambda: dpo.ipo(dpo.log_ratio_margin(means, against), beta),
        "bco_pair": lambda: dpo.bco_pair(ratios, beta),
        "sft": lambda: dpo.chosen_nll(policy.chosen, tokens.chosen),
    }
    if isinstance(section.loss, str):
        return _outcome(section, policy, tokens, computed[section.loss](), beta * raw, fall)
    terms = {name: computed[name]() for name in section.weights}
    loss = torch.stack([weight * terms[name] for name, weight in section.weights.items()]).sum(0)
    return PairOutcome(loss, beta * raw, policy, tokens, fall, terms)


def _outcome(
    section: DpoSection, policy: Paired, tokens: Paired, loss: Tensor, margin: Tensor, fall: Tensor | None = None
) -> PairOutcome:
    if section.nll_weight:
        loss = loss + section.nll_weight * dpo.chosen_nll(policy.chosen, tokens.chosen)
    return PairOutcome(loss, margin, policy, tokens, fall)


def _per_token(logprobs: Paired, tokens: Paired) -> Paired:
    return Paired(logprobs.chosen / tokens.chosen, logprobs.rejected / tokens.rejected)


class DpoStage(Stage[DpoRecipe, Preference]):
    """Learns which of two answers people prefer.

    Args:
        given: the function that is the objective, if dpo.loss is function.
    """

    name = "dpo"
    record_type = Preference

    def __init__(self, recipe: DpoRecipe, given: PairLosses | None = None) -> None:
        super().__init__(recipe)
        self._given = given

    def require(self, display: Display) -> list[str]:
        """Refuse dpo.loss function without a function, and a function with another dpo.loss."""
        require_objective(self.recipe.dpo, self._given)
        return []

    def functions(self) -> Sequence[UserFunction]:
        """The objective, if it is a user function. It may not change on a resume."""
        given = self._given
        if given is None:
            return ()
        return (UserFunction("objective", function_name(given), function_hash(given), may_change=False),)

    def usable(self, record: Preference) -> bool:
        """A tie says nothing about which answer to prefer."""
        return not record.tie

    def guards(self) -> Sequence[Limit]:
        """The chosen answers' log-probability must not fall together with the rejected ones'."""
        setting = keeps_chosen_likely(self.recipe.dpo.loss)
        means = f"the chosen answers become unlikely, too; {setting} or a lower learning rate prevents that"
        return (Limit("chosen_fall", "chosen_fall", self.recipe.guards.chosen_fall, means),)

    def start(self, session: Session[DpoRecipe]) -> DpoObjective:
        """Compute or read the reference, and check that the policy agrees with it."""
        began = time.perf_counter()
        references = _references_of(session)
        session.manifest["reference_seconds"] = round(time.perf_counter() - began, 3)
        objective = DpoObjective(session, references, self._given)
        if self.recipe.training.self_checks and references.train is not None:
            session.record_checks(require(objective.first_loss_checks()))
        return objective


class References(NamedTuple):
    """(rows, 2) fp32 summed log-probabilities of pairs under the reference, chosen first; None for SimPO."""

    train: Tensor | None
    heldout: Tensor | None


def _references_of(session: Session[DpoRecipe]) -> References:
    if session.recipe.dpo.loss == "simpo":
        return References(None, None)
    train, heldout = (reference_of_rows(session, part).view(-1, 2) for part in ("train", "heldout"))
    return References(train, heldout)


class DpoObjective(PairObjective[DpoRecipe]):
    """The preference objective that the recipe names, a mean over pairs.

    Args:
        session: the opened run.
        references: log-probabilities of the run's rows under the reference.
        given: see DpoStage.
    """

    def __init__(self, session: Session[DpoRecipe], references: References, given: PairLosses | None) -> None:
        super().__init__(session)
        self._section = session.recipe.dpo
        example = "" if "sft" in self._section.weights else " (1.0, for example)"
        self.against_a_fall = f"{keeps_chosen_likely(self._section.loss)}{example}"
        self._references = references
        self._given = given

    def outcome(self, model: nn.Module, batch: PackedBatch, part: Part) -> PairOutcome:
        """See PairObjective."""
        policy, tokens = self._computed(model, batch)
        reference = {"train": self._references.train, "heldout": self._references.heldout}[part]
        rows = None if reference is None else reference[list(batch.rows)].to(policy.chosen.device)
        against = None if rows is None else Paired(rows[:, 0], rows[:, 1])
        return pair_outcome(self._section, policy, against, tokens, self._given)

    @torch.no_grad()
    def first_loss_checks(self) -> list[SelfCheck]:
        """Checks on the reference's own first microbatch, in eval mode.

        The same rows share the same matrix products then, so only a wrong reference can move the margin from 0.
        Dropout could move it as well, and hide a wrong reference.
        """
        model = self._session.loaded.packed
        rows = next(microbatches(self._session.prepared.train, self._max_tokens))
        with evaluating(model):
            first, second = (self.outcome(model, collate(rows), "train") for _ in range(2))
        own = []
        if self._given is not None:  # policy and reference agree here
            pairs = dpo.PairLogprobs(first.policy, first.policy, first.tokens, self._section.beta)
            own.append(check_objective(self._given, pairs))
        return own + check_first_loss(
            float(dpo.sigmoid(first.margin, 1.0).mean()),
            float(first.margin.mean()),
            repeated=float((first.margin - second.margin).abs().max()),
            largest=float(torch.stack(first.policy).abs().max()),
        )
