"""Direct preference optimisation on pairs: policy log-probs, reference log-probs, losses, mean."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from torch import Tensor, nn

from prefine.data.tokens.trees import PackedBatch, collate, microbatches
from prefine.intervals import mean
from prefine.models.forward.packed import evaluating
from prefine.objectives import dpo
from prefine.objectives.masked import Paired, paired, per_sequence
from prefine.recipe.dpo import DpoRecipe, DpoSection
from prefine.records import Preference
from prefine.runs.atomic import JSON
from prefine.training.display import Display
from prefine.training.loop.contract import Sums
from prefine.training.loop.guards import Limit
from prefine.training.run.before import Before
from prefine.training.run.checks import SelfCheck, check_first_loss, require
from prefine.training.run.run_stage import run_stage
from prefine.training.run.session import Session
from prefine.training.run.stage import Objective, Stage
from prefine.training.run.user_functions import UserFunction, function_hash, function_name
from prefine.training.stages.own_objective import PairLosses, check_objective, losses_of, require_objective
from prefine.training.stages.reference import reference_of_rows
from prefine.training.tracking.tracker import Details

# A fall of the chosen answers' mean log-probability by more than this many nats is worth a warning.
_CHOSEN_FALL_NATS = 5.0


def run_dpo(
    recipe: DpoRecipe, resume: bool, display: Display | Console, *, objective: PairLosses | None = None
) -> Path:
    """Optimise preferences as the recipe says; returns the run's folder. Raises PrefineError.

    Args:
        objective: computes the losses of pairs, if dpo.loss is function.
    """
    return run_stage(DpoStage(recipe, objective), resume, display)


@dataclass(frozen=True)
class PairOutcome:
    """One value per pair, (B,) fp32 each.

    Attributes:
        loss: the loss.
        margin: beta-scaled reward margin, nats; above 0 if the pair is ranked as labelled.
        policy: summed log-probabilities under the policy.
        tokens: answer lengths.
        chosen_fall: fall of the chosen answer's log-probability below the reference's, nats; None without a reference.
    """

    loss: Tensor
    margin: Tensor
    policy: Paired
    tokens: Paired
    chosen_fall: Tensor | None


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
    means = Paired(policy.chosen / tokens.chosen, policy.rejected / tokens.rejected)
    beta, smoothing = section.beta, section.label_smoothing
    if reference is None:
        raw = means.chosen - means.rejected
        loss = dpo.simpo(means, beta, section.simpo_margin)
    else:
        compared, against = policy, reference
        if section.length_normalized or section.loss == "ipo":
            compared = means
            against = Paired(reference.chosen / tokens.chosen, reference.rejected / tokens.rejected)
        raw = dpo.log_ratio_margin(compared, against)
        if objective is not None:
            loss = losses_of(objective, dpo.PairLogprobs(policy, reference, tokens, beta))
        else:
            loss = {
                "sigmoid": lambda: dpo.sigmoid(raw, beta),
                "conservative": lambda: dpo.conservative(raw, beta, smoothing),
                "robust": lambda: dpo.robust(raw, beta, smoothing),
                "hinge": lambda: dpo.hinge(raw, beta),
                "ipo": lambda: dpo.ipo(raw, beta),
            }[section.loss]()
    if section.nll_weight:
        loss = loss + section.nll_weight * dpo.chosen_nll(policy.chosen, tokens.chosen)
    fall = None if reference is None else (reference.chosen - policy.chosen).detach()
    return PairOutcome(loss, beta * raw, policy, tokens, fall)


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
        means = "the chosen answers become unlikely, too; dpo.nll_weight or a lower learning rate prevents that"
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


class DpoObjective(Objective[DpoRecipe]):
    """The preference objective that the recipe names, a mean over pairs.

    Args:
        session: the opened run.
        references: log-probabilities of the run's rows under the reference.
        given: see DpoStage.
    """

    def __init__(self, session: Session[DpoRecipe], references: References, given: PairLosses | None) -> None:
        super().__init__(session)
        self._section = session.recipe.dpo
        self._max_tokens = session.recipe.training.max_tokens_per_microbatch
        self._references = references
        self._given = given
        self._pairs: dict[str, list[float]] = {}
        self.before: Before = Before(session.run.heldout_before)

    def loss(self, model: nn.Module, batch: PackedBatch) -> Sums:
        """The loss of a microbatch of training pairs, with logged metrics."""
        pairs = self._outcome(model, batch, self._references.train)
        return Sums(pairs.loss.sum(), "trees", {name: float(v.sum()) for name, v in _logged(pairs).items()})

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Means over held-out pairs. Each pair's values are kept for `finish`."""
        parts: dict[str, list[Tensor]] = {}
        for run in microbatches(self._session.prepared.heldout, self._max_tokens):
            pairs = self._outcome(self._session.loaded.packed, collate(run), self._references.heldout)
            for name, values in {"loss": pairs.loss, **_logged(pairs), **_judged(pairs)}.items():
                parts.setdefault(name, []).append(values.cpu())
        joined = {name: torch.cat(tensors) for name, tensors in parts.items()}
        self._pairs = {name: tensor.tolist() for name, tensor in joined.items()}
        self.before.keep(self._pairs, write=self._session.processes.is_main)
        return {name: float(tensor.mean()) for name, tensor in joined.items() if not name.endswith("_tokens")}

    def heldout_details(self) -> Details:
        """The figures of each held-out pair."""
        return Details(self._pairs)

    def finish(self) -> dict[str, JSON]:
        """Held-out metrics and each pair, before and after; warns if the chosen answers became less likely."""
        if not self._pairs:  # resumed after the last step: no step of this process has evaluated
            self.evaluate()
        before = self.before.value
        metrics = self._session.before_and_after()
        heldout = self._session.prepared.heldout
        pairs = [
            {
                "id": json.loads(heldout.record_json(i)).get("id"),
                "before_margin": before["margin"][i],
                "after_margin": self._pairs["margin"][i],
                "before_ranked": before["policy_accuracy"][i],
                "after_ranked": self._pairs["policy_accuracy"][i],
                "chosen_shift": self._pairs["logp_chosen"][i] - before["logp_chosen"][i],
                "rejected_shift": self._pairs["logp_rejected"][i] - before["logp_rejected"][i],
                "chosen_tokens": self._pairs["chosen_tokens"][i],
                "rejected_tokens": self._pairs["rejected_tokens"][i],
            }
            for i in range(len(heldout))
        ]
        change = mean([pair["chosen_shift"] for pair in pairs])
        certain = change is not None and change.interval is not None and change.interval.high < 0
        if change is not None and certain and change.value < -_CHOSEN_FALL_NATS:
            self._session.warnings.append(
                f"The chosen answers became less likely: their mean log-probability fell by {-change.value:.1f} nats. "
                "To prevent that, set dpo.nll_weight (1.0, for example) or lower training.learning_rate."
            )
        return {**metrics, "count": len(heldout), "pairs": pairs}

    def _outcome(self, model: nn.Module, batch: PackedBatch, reference: Tensor | None) -> PairOutcome:
        batch = batch.to(self._session.loaded.packed.device)
        policy = paired(per_sequence(model(batch), batch.sequence, batch.sequences))
        rows = None if reference is None else reference[list(batch.rows)].to(policy.chosen.device)
        return pair_outcome(
            self._section,
            policy,
            None if rows is None else Paired(rows[:, 0], rows[:, 1]),
            paired(batch.sequence_lengths()),
            self._given,
        )

    @torch.no_grad()
    def first_loss_checks(self) -> list[SelfCheck]:
        """Checks on the reference's own first microbatch, in eval mode.

        The same rows share the same matrix products then, so only a wrong reference can move the margin from 0.
        Dropout could move it as well, and hide a wrong reference.
        """
        model = self._session.loaded.packed
        rows = next(microbatches(self._session.prepared.train, self._max_tokens))
        with evaluating(model):
            first, second = (self._outcome(model, collate(rows), self._references.train) for _ in range(2))
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


def _logged(pairs: PairOutcome) -> dict[str, Tensor]:
    return {
        "accuracy": (pairs.margin > 0).float(),
        "margin": pairs.margin.detach(),
        "logp_chosen": pairs.policy.chosen.detach(),
        "logp_rejected": pairs.policy.rejected.detach(),
        **({} if pairs.chosen_fall is None else {"chosen_fall": pairs.chosen_fall}),
    }


def _judged(pairs: PairOutcome) -> dict[str, Tensor]:
    """Metrics of evaluations only: whether the policy alone, per token, prefers the chosen answer; lengths."""
    mean_chosen = pairs.policy.chosen / pairs.tokens.chosen
    mean_rejected = pairs.policy.rejected / pairs.tokens.rejected
    return {
        "policy_accuracy": (mean_chosen > mean_rejected).float(),
        "chosen_tokens": pairs.tokens.chosen,
        "rejected_tokens": pairs.tokens.rejected,
    }
