"""What objectives on pairs have in common: metrics of each pair, and held-out pairs before and after."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from prefine.data.tokens.trees import PackedBatch, collate, microbatches
from prefine.intervals import mean
from prefine.objectives.masked import Paired, paired, per_sequence
from prefine.runs.atomic import JSON
from prefine.training.loop.contract import Sums
from prefine.training.run.before import Before
from prefine.training.run.session import R_co, Session
from prefine.training.run.stage import Objective
from prefine.training.tracking.tracker import Details

# A fall of the chosen answers' mean log-probability by more than this many nats is worth a warning.
_CHOSEN_FALL_NATS = 5.0

Part = Literal["train", "heldout"]


@dataclass(frozen=True)
class PairOutcome:
    """One value per pair, (B,) fp32 each.

    Attributes:
        loss: the loss.
        margin: how much more the objective favours the chosen answer; above 0 if the pair is ranked as labelled.
        policy: summed log-probabilities under the policy.
        tokens: answer lengths.
        chosen_fall: fall of the chosen answer's log-probability below the reference's, nats; None without a reference.
        terms: the parts of a loss of several, by name, without their weights.
    """

    loss: Tensor
    margin: Tensor
    policy: Paired
    tokens: Paired
    chosen_fall: Tensor | None = None
    terms: Mapping[str, Tensor] = field(default_factory=dict)


class PairObjective(Objective[R_co]):
    """A mean over pairs.

    Attributes:
        against_a_fall: settings that keep the chosen answers likely, after "set".
    """

    against_a_fall: str

    def __init__(self, session: Session[R_co]) -> None:
        super().__init__(session)
        self._max_tokens = session.recipe.training.max_tokens_per_microbatch
        self._pairs: dict[str, list[float]] = {}
        self.before: Before = Before(session.run.heldout_before)

    @abstractmethod
    def outcome(self, model: nn.Module, batch: PackedBatch, part: Part) -> PairOutcome:
        """The pairs of a microbatch.

        Args:
            part: which of the run's rows they are.
        """

    def loss(self, model: nn.Module, batch: PackedBatch) -> Sums:
        """The loss of a microbatch of training pairs, with logged metrics."""
        pairs = self.outcome(model, batch, "train")
        return Sums(pairs.loss.sum(), "trees", {name: float(v.sum()) for name, v in _logged(pairs).items()})

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Means over held-out pairs. Each pair's values are kept for `finish`."""
        parts: dict[str, list[Tensor]] = {}
        for run in microbatches(self._session.prepared.heldout, self._max_tokens):
            pairs = self.outcome(self._session.loaded.packed, collate(run), "heldout")
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
                f"To prevent that, set {self.against_a_fall} or lower training.learning_rate."
            )
        return {**metrics, "count": len(heldout), "pairs": pairs}

    def _computed(self, model: nn.Module, batch: PackedBatch) -> tuple[Paired, Paired]:
        """Summed log-probabilities and lengths of the answers of B pairs."""
        batch = batch.to(self._session.loaded.packed.device)
        policy = paired(per_sequence(model(batch), batch.sequence, batch.sequences))
        return policy, paired(batch.sequence_lengths())


def _logged(pairs: PairOutcome) -> dict[str, Tensor]:
    return {
        "accuracy": (pairs.margin > 0).float(),
        "margin": pairs.margin.detach(),
        "logp_chosen": pairs.policy.chosen.detach(),
        "logp_rejected": pairs.policy.rejected.detach(),
        **({} if pairs.chosen_fall is None else {"chosen_fall": pairs.chosen_fall}),
        **{f"loss_{name}": values.detach() for name, values in pairs.terms.items()},
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
