"""Kahneman-Tversky optimisation on votes: policy log-probs, reference log-probs, KL baseline, losses, mean."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from prefine.data.tokens.store import TokenStore
from prefine.data.tokens.trees import PackedBatch, TokenTree, collate, microbatches
from prefine.errors import RecipeError
from prefine.intervals import mean
from prefine.models.forward.packed import evaluating
from prefine.objectives import kto
from prefine.objectives.masked import per_sequence
from prefine.recipe.effects import Unread, without_effect
from prefine.recipe.kto import KtoRecipe
from prefine.recipe.steps import steps_per_epoch
from prefine.records import Vote
from prefine.runs.atomic import JSON
from prefine.training.display import Display
from prefine.training.loop.contract import Steps, Sums
from prefine.training.run.before import Before
from prefine.training.run.checks import SelfCheck, check_first_log_ratio, require
from prefine.training.run.run_stage import run_stage
from prefine.training.run.session import Session
from prefine.training.run.stage import Objective, Stage
from prefine.training.stages.mismatched import KlBaseline, baseline_of_heldout, baseline_of_steps
from prefine.training.stages.reference import reference_of_rows
from prefine.training.tracking.tracker import Details

# A fall of the liked answers' mean log-probability by more than this many nats is worth a warning.
_LIKED_FALL_NATS = 5.0
# Eq. 8 asks for desirable_weight * up / (undesirable_weight * down) from 1 to 4/3; a warning needs more than that.
_WEIGHED = (0.75, 1.5)
_BY_SIDE = ("reward", "logp")


def run_kto(recipe: KtoRecipe, resume: bool, display: Display | Console) -> Path:
    """Optimise on votes as the recipe says; returns the run's folder. Raises PrefineError."""
    return run_stage(KtoStage(recipe), resume, display)


@dataclass(frozen=True)
class Votes:
    """A run's votes in one part of its rows.

    Attributes:
        up: (rows,) bool on the CPU: thumbs up.
        reference: (rows,) fp32 on the CPU: summed log-probabilities under the reference, nats.
    """

    up: Tensor
    reference: Tensor


@dataclass(frozen=True)
class VoteOutcome:
    """One value per vote, (B,) each; fp32 but for `up`.

    Attributes:
        loss: the loss.
        up: bool: thumbs up.
        log_ratio: summed log-probability minus that under the reference, nats.
        logp: summed log-probability under the policy, nats.
        margin: beta (h - z_0) of liked answers, its negative of disliked ones: above 0 if the answer is rated as voted.
        reward: beta h.
    """

    loss: Tensor
    up: Tensor
    log_ratio: Tensor
    logp: Tensor
    margin: Tensor
    reward: Tensor


class KtoStage(Stage[KtoRecipe, Vote]):
    """Learns which single answers people like."""

    name = "kto"
    record_type = Vote

    def start(self, session: Session[KtoRecipe]) -> KtoObjective:
        """Compute or read the reference of the rows and of the mismatched answers, and check that the policy agrees."""
        train, heldout = session.prepared.train, session.prepared.heldout
        up = _labels(train)
        _require_balance(session, int(up.sum()), len(up))
        began = time.perf_counter()
        votes = Votes(up, reference_of_rows(session, "train"))
        kept = Votes(_labels(heldout), reference_of_rows(session, "heldout"))
        baselines = None
        if session.recipe.kto.loss == "kto":
            _require_pairs(self.recipe, len(train))
            baselines = (baseline_of_steps(session), baseline_of_heldout(session))
        session.manifest["reference_seconds"] = round(time.perf_counter() - began, 3)
        objective = KtoObjective(session, votes, kept, baselines)
        if self.recipe.training.self_checks:
            session.record_checks(require([objective.first_check()]))
        return objective


class KtoObjective(Objective[KtoRecipe]):
    """The losses of votes, a mean over votes. Each step first measures its KL baseline on all of its rows.

    Args:
        session: the opened run.
        train, heldout: the votes of the run's rows.
        baselines: of the steps and of the held-out rows; None for a loss without one.
    """

    def __init__(
        self,
        session: Session[KtoRecipe],
        train: Votes,
        heldout: Votes,
        baselines: tuple[KlBaseline, KlBaseline] | None,
    ) -> None:
        super().__init__(session)
        section = session.recipe.kto
        self._beta = section.beta
        self._weights = kto.Weights(section.desirable_weight, section.undesirable_weight)
        self._max_tokens = session.recipe.training.max_tokens_per_microbatch
        self._train, self._heldout = train, heldout
        self._baselines = baselines
        self._baseline: float | None = None
        self._votes: dict[str, list[float]] = {}
        self.before: Before = Before(session.run.heldout_before)

    def step(self, steps: Steps, trees: Sequence[TokenTree]) -> dict[str, float]:
        """One optimiser step against the KL baseline of its rows under the weights that it begins with."""
        if self._baselines is not None:
            self._baseline = self._baselines[0].of_group(steps.number, steps.processes)
        row = steps.optimise(trees)
        up = row.pop("up")
        return {**_by_side(row, up), **_named(self._baseline)}

    def loss(self, model: nn.Module, batch: PackedBatch) -> Sums:
        """The loss of a microbatch of training votes, with logged metrics."""
        votes = self._outcome(model, batch, self._train, self._baseline)
        sides = {
            f"{name}_{side}": value[mask].sum()
            for side, mask in (("up", votes.up), ("down", ~votes.up))
            for name, value in (("reward", votes.reward), ("logp", votes.logp))
        }
        logged = {"accuracy": (votes.margin > 0).sum(), "margin": votes.margin.sum(), "up": votes.up.sum(), **sides}
        return Sums(votes.loss.sum(), "trees", {name: float(value.detach()) for name, value in logged.items()})

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Means over held-out votes. Each vote's values are kept for `finish`."""
        baseline = None if self._baselines is None else self._baselines[1].of_group(0)
        parts: dict[str, list[Tensor]] = {}
        for run in microbatches(self._session.prepared.heldout, self._max_tokens):
            votes = self._outcome(self._session.loaded.packed, collate(run), self._heldout, baseline)
            values = {"loss": votes.loss, "margin": votes.margin, "reward": votes.reward, "logp": votes.logp}
            for name, value in values.items():
                parts.setdefault(name, []).append(value.cpu())
        joined = {name: torch.cat(tensors) for name, tensors in parts.items()}
        self._votes = {name: tensor.tolist() for name, tensor in joined.items()}
        self.before.keep(self._votes, write=self._session.processes.is_main)
        means = {"loss": joined["loss"], "accuracy": (joined["margin"] > 0).float(), "margin": joined["margin"]}
        up = self._heldout.up
        sides = {
            f"{name}_{side}": float(joined[name][mask].mean())
            for side, mask in (("up", up), ("down", ~up))
            for name in _BY_SIDE
            if mask.any()
        }
        return {
            **{name: float(value.mean()) for name, value in means.items()},
            **sides,
            **_named(baseline),
        }

    def heldout_details(self) -> Details:
        """The figures of each held-out vote."""
        return Details(self._votes)

    def finish(self) -> dict[str, JSON]:
        """Held-out metrics and each vote, before and after; warns if the liked answers became less likely."""
        if not self._votes:  # resumed after the last step: no step of this process has evaluated
            self.evaluate()
        before, heldout = self.before.value, self._session.prepared.heldout
        votes: list[dict[str, JSON]] = [
            {
                "id": json.loads(heldout.record_json(row)).get("id"),
                "up": bool(self._heldout.up[row]),
                "before_margin": before["margin"][row],
                "after_margin": self._votes["margin"][row],
                "shift": self._votes["logp"][row] - before["logp"][row],
                "tokens": heldout[row].supervised_tokens,
            }
            for row in range(len(heldout))
        ]
        self._warn_of_a_fall([float(vote["shift"]) for vote in votes if vote["up"]])  # type: ignore[arg-type]
        return {**self._session.before_and_after(), "count": len(heldout), "unit": "vote", "votes": votes}

    @torch.no_grad()
    def first_check(self) -> SelfCheck:
        """A check of the reference on its own first microbatch, in eval mode, as DPO's (see DpoObjective)."""
        model = self._session.loaded.packed
        rows = next(microbatches(self._session.prepared.train, self._max_tokens))
        with evaluating(model):
            first, second = (self._outcome(model, collate(rows), self._train, None) for _ in range(2))
        return check_first_log_ratio(
            float(first.log_ratio.mean()),
            repeated=float((first.log_ratio - second.log_ratio).abs().max()),
            largest=float(first.logp.abs().max()),
        )

    def _outcome(self, model: nn.Module, batch: PackedBatch, votes: Votes, baseline: float | None) -> VoteOutcome:
        batch = batch.to(self._session.loaded.packed.device)
        baseline = 0.0 if baseline is None else baseline
        logp = per_sequence(model(batch), batch.sequence, batch.sequences)
        rows = list(batch.rows)
        up, reference = votes.up[rows].to(logp.device), votes.reference[rows].to(logp.device)
        log_ratio = logp - reference
        moved = (self._beta * (log_ratio - baseline)).detach()
        return VoteOutcome(
            loss=kto.kto(log_ratio, up, self._beta, baseline, self._weights),
            up=up,
            log_ratio=log_ratio,
            logp=logp,
            margin=torch.where(up, moved, -moved),
            reward=self._beta * log_ratio.detach(),
        )

    def _warn_of_a_fall(self, shifts: Sequence[float]) -> None:
        change = mean(shifts)
        certain = change is not None and change.interval is not None and change.interval.high < 0
        if change is not None and certain and change.value < -_LIKED_FALL_NATS:
            self._session.warnings.append(
                f"The liked answers became less likely: their mean log-probability fell by {-change.value:.1f} nats. "
                "To prevent that, raise kto.desirable_weight or lower training.learning_rate."
            )


def _named(baseline: float | None) -> dict[str, float]:
    return {} if baseline is None else {"kl_baseline": baseline}


def _by_side(row: dict[str, float], up: float) -> dict[str, float]:
    """A step's row with means over the votes of a side, in place of sums over all votes; no key for a side without any.

    Args:
        row: means over all votes.
        up: the share of thumbs up.
    """
    found = dict(row)
    for side, share in (("up", up), ("down", 1 - up)):
        for name in _BY_SIDE:
            value = found.pop(f"{name}_{side}")
            if share:
                found[f"{name}_{side}"] = value / share
    return found


def _labels(store: TokenStore) -> Tensor:
    return torch.tensor([json.loads(store.record_json(row))["label"] for row in range(len(store))], dtype=torch.bool)


def _require_pairs(recipe: KtoRecipe, rows: int) -> None:
    """Refuse a run with a step of one vote, which has no answer to another prompt."""
    size = recipe.training.batch_size
    steps = steps_per_epoch(rows, size)
    if rows < 2 * steps:
        raise RecipeError(
            f"training.batch_size {size} with {rows} training votes makes a step of one vote, whose KL baseline has no "
            "answer to another prompt",
            "Set it to 3 or more, or kto.loss to apo_zero_unpaired."
            if rows > 1
            else "Add votes, or set kto.loss to apo_zero_unpaired.",
        )


def _require_balance(session: Session[KtoRecipe], up: int, count: int) -> None:
    """Refuse a weight that no vote has; warn if the two sides weigh unequally, or there is one side only."""
    section, down = session.recipe.kto, count - up
    rules = [
        Unread(down == 0, ("kto.undesirable_weight",), "no training vote is a thumb down", "data.train to other votes"),
        Unread(up == 0, ("kto.desirable_weight",), "no training vote is a thumb up", "data.train to other votes"),
    ]
    if unread := without_effect(session.recipe, rules):
        raise RecipeError("; ".join(unread), "Leave it out: there is one kind of votes.")
    if not (up and down):
        session.warnings.append(
            f"All {count} training votes are thumbs {'up' if up else 'down'}. The model learns what to write from "
            "thumbs up, and what not to write from thumbs down; without both it cannot tell them apart."
        )
        return
    weighed = section.desirable_weight * up / (section.undesirable_weight * down)
    if not _WEIGHED[0] <= weighed <= _WEIGHED[1]:
        field, value = (
            ("undesirable_weight", section.undesirable_weight * weighed)
            if weighed > 1
            else ("desirable_weight", section.desirable_weight / weighed)
        )
        session.warnings.append(
            f"{up} training votes are thumbs up and {down} thumbs down; with their weights, the first weigh "
            f"{weighed:.2g} times as much. KTO's authors advise 1 to 1.33 times: set kto.{field} to {value:.2g}."
        )
