"""One update of reinforcement learning: answers to some prompts, and the optimiser steps on them. Resumable."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import nn

from prefine.data.tokens.trees import PackedBatch, TokenTree
from prefine.objectives.kl import KlController
from prefine.recipe.rl import PpoRecipe
from prefine.training.loop.contract import State, Steps, Sums
from prefine.training.rl.algorithms import Algorithm, KnownTokens, Targets
from prefine.training.rl.first_ratio import FirstRatio
from prefine.training.rl.measure import measure
from prefine.training.rl.metrics import extremes, update_metrics
from prefine.training.rl.policy import Policy
from prefine.training.rl.rewards import Rewards, Scored
from prefine.training.rl.rollouts import (
    Generations,
    Rollouts,
    Timings,
    generate_answers,
    minibatches,
    prompt_answers,
    seed_of,
)
from prefine.training.run.session import Session

V = TypeVar("V")


@dataclass
class Progress:
    """Progress of one update: what a checkpoint between its optimiser steps stores.

    Attributes:
        rollouts: None until the answers have been generated, scored and measured.
        rows: metrics of the optimiser steps taken so far.
        ratios: smallest and largest ratio pi / pi_old of their tokens.
        timings: seconds of the update's phases.
    """

    rollouts: Rollouts | None = None
    rows: list[dict[str, float]] = field(default_factory=list)
    ratios: tuple[float, float] = (math.inf, -math.inf)
    timings: Timings = field(default_factory=Timings)

    def state(self) -> State:
        """For a checkpoint."""
        rollouts = self.rollouts
        json = {
            "inner": len(self.rows),
            "rows": self.rows,
            "ratios": list(self.ratios),
            "seconds": self.timings.seconds,
            "rollouts": None if rollouts is None else rollouts.state(),
            "scored": None if rollouts is None else rollouts.scored.state(),
        }
        return State({} if rollouts is None else {"rollouts": rollouts.tensors()}, json)

    @staticmethod
    def from_state(state: State) -> Progress:
        """Rebuild from the value of `state`."""
        tensors, json = state
        kept = json["rollouts"]
        rollouts = None if kept is None else Rollouts.from_state(tensors["rollouts"], kept, json["scored"])
        low, high = json["ratios"]
        return Progress(rollouts, list(json["rows"]), (low, high), Timings(dict(json["seconds"])))


@dataclass(frozen=True)
class Components:
    """Objects that all updates of a run share.

    Attributes:
        first_ratio: the self-check of the first optimiser step.
    """

    session: Session[PpoRecipe]
    policy: Policy
    rewards: Rewards
    algorithm: Algorithm
    kl: KlController
    first_ratio: FirstRatio


class Update:
    """One update.

    Args:
        number: number of the update in the run, from 0.
        progress: empty, or loaded from a checkpoint: the update continues from there.

    Attributes:
        critic_only: whether only the critic is trained, while it warms up.
    """

    def __init__(self, number: int, progress: Progress, parts: Components) -> None:
        self.number = number
        self.progress = progress
        self._parts = parts
        self._recipe = parts.session.recipe
        self._targets: Targets | None = None
        self._weights: torch.Tensor | None = None
        self.critic_only = parts.policy.has_critic and number < self._recipe.ppo.value_warmup_updates

    def run(self, steps: Steps, prompts: Sequence[TokenTree]) -> dict[str, float]:
        """Do the rest of the update; returns its metrics.

        Args:
            prompts: trees without answers.

        Raises:
            RewardError: a reward source failed; no weight was changed.
            Stopped: the run was asked to stop between two optimiser steps; `progress` is saved.
        """
        algorithm, coefficient = self._parts.algorithm, self._parts.kl.coefficient
        if self.progress.rollouts is None:
            answers = self.generate(prompts)
            scored = self.score(answers)
            self.progress.rollouts = self.measure(answers, scored)
        rollouts = self.progress.rollouts
        rewards = algorithm.token_rewards(rollouts, coefficient)
        self._targets = algorithm.targets(rollouts, rewards)
        self.learn(steps, rollouts)
        return self.metrics(rollouts, self._targets)

    # --- Answers -----------------------------------------------------------------------------------------------------

    def generate(self, prompts: Sequence[TokenTree]) -> Generations:
        """Let the policy answer all prompts; each process generates its share, and all get every answer."""
        parts, recipe = self._parts, self._recipe
        own = parts.session.processes.share(prompts)
        with self.progress.timings.of("generate"):
            found = parts.session.processes.all_or_raise(
                lambda: generate_answers(
                    parts.policy.model,
                    parts.session.loaded.template,
                    recipe,
                    own,
                    lambda place, sample: seed_of(recipe.training.seed, self.number, own[place].row, sample),
                    recipe.samples_per_prompt,
                )
            )
        return Generations.joined(self._gathered(found.by_prompt(recipe.samples_per_prompt), len(prompts)))

    def score(self, answers: Generations) -> Scored:
        """Rewards of all answers, before the KL penalty; each process scores its share."""
        parts, samples = self._parts, self._recipe.samples_per_prompt
        own = Generations.joined(parts.session.processes.share(answers.by_prompt(samples)))
        with self.progress.timings.of("score"):
            asked = prompt_answers(own, parts.session.prepared.train, [tree.row for tree in own.trees])
            found = parts.session.processes.all_or_raise(lambda: parts.rewards.score(asked))
        by_prompt = self._gathered(
            [
                {name: scores[place * samples : (place + 1) * samples] for name, scores in found.items()}
                for place in range(len(own.trees))
            ],
            len(answers.trees),
        )
        scores = {name: [score for one in by_prompt for score in one[name]] for name in found}
        return parts.rewards.combined(scores, torch.tensor(answers.lengths), torch.tensor(answers.ended))

    def measure(self, answers: Generations, scored: Scored) -> Rollouts:
        """Log-probabilities under policy and reference, values and entropies of all answers' tokens.

        They are computed in the minibatches and microbatches of the first epoch, so that the first ratios are exactly
        1. Prompts that are not trained on are measured separately.
        """
        parts, limit = self._parts, self._recipe.training.max_tokens_per_microbatch
        apart = parts.algorithm.apart
        trees = tuple(replace(tree, row=place, apart=apart) for place, tree in enumerate(answers.trees))
        trained = parts.algorithm.trained_prompts(scored, torch.tensor(answers.ended))
        left_out = sorted(set(range(len(trees))) - set(trained))
        groups = [
            parts.session.processes.share([trees[place] for place in part])
            for part in [*self._minibatches(trained, 0), left_out]
        ]
        with self.progress.timings.of("measure"):
            parts.first_ratio.prepare(parts.policy, groups[0], limit)
            own = measure(parts.policy.model, parts.policy.reference_logprobs, groups, limit)
            measured = parts.session.processes.gather_by_row(own)
        columns = {
            name: torch.cat([measured[place][name] for place in range(len(trees))])
            for name in ("logprobs", "reference", "entropy", "values")
        }
        rows, lengths = tuple(tree.row for tree in answers.trees), torch.tensor(answers.lengths)
        return Rollouts(
            trees, rows, tuple(answers.texts), lengths, torch.tensor(answers.ended), scored=scored, **columns
        )

    # --- Optimiser steps ---------------------------------------------------------------------------------------------

    def learn(self, steps: Steps, rollouts: Rollouts) -> None:
        """Take the remaining optimiser steps: epochs over minibatches, until the policy has moved by ppo.max_kl.

        Between two steps is a safe point, where the run can stop and be resumed.
        """
        section, parts, progress = self._recipe.ppo, self._parts, self.progress
        trained = parts.algorithm.trained_prompts(rollouts.scored, rollouts.ended)
        if not trained:
            cut = " or are cut" if self._recipe.rollout.skip_truncated else ""
            parts.session.display.say(
                f"update {self.number + 1}: no step, as each prompt's answers all have the same reward{cut}"
            )
        count = min(section.minibatches, len(trained))
        learning = parts.policy.critic_parameters() if self.critic_only else None
        while len(progress.rows) < section.epochs * count:
            epoch, part = divmod(len(progress.rows), count)
            places = self._minibatches(trained, epoch)[part]
            self._weights = parts.algorithm.weights(rollouts, places)
            with progress.timings.of("train"):
                row = steps.optimise(
                    [replace(rollouts.trees[place], apart=parts.algorithm.apart) for place in places], learning
                )
            progress.ratios = extremes(parts.session.processes.gather(progress.ratios))
            if checked := parts.first_ratio.check(progress.ratios):
                parts.session.record_checks(checked)
                parts.session.write_manifest("running")  # a resumed run does not repeat this check
            progress.rows.append(row)
            if section.max_kl is not None and row["approx_kl"] > section.max_kl:
                break
            if len(progress.rows) < section.epochs * count:
                steps.safe_point()

    def loss(self, model: nn.Module, batch: PackedBatch) -> Sums:
        """Sums over the microbatch's tokens; see Algorithm.loss."""
        rollouts, targets = self.progress.rollouts, self._targets
        assert rollouts is not None and targets is not None  # noqa: S101
        known = KnownTokens.of(batch, rollouts, targets, self._weights)
        out = model(batch, with_entropy=self._recipe.ppo.entropy_coefficient > 0, head_only=self.critic_only)
        loss, parts = self._parts.algorithm.loss(out, known, self._parts.kl.coefficient, critic_only=self.critic_only)
        with torch.no_grad():
            ratio = torch.exp(out.logprobs - known.logprobs)
            self.progress.ratios = extremes([self.progress.ratios, (float(ratio.min()), float(ratio.max()))])
        return Sums(loss, "tokens", {name: float(part.detach().sum()) for name, part in parts.items()})

    def metrics(self, rollouts: Rollouts, targets: Targets) -> dict[str, float]:
        """See docs/ppo.md."""
        progress, algorithm = self.progress, self._parts.algorithm
        return {
            **update_metrics(
                rollouts, targets, progress.rows, progress.ratios, progress.timings, self._parts.kl.coefficient
            ),
            **self._parts.rewards.metrics(rollouts.scored, algorithm.compared(len(rollouts.lengths))),
            **algorithm.metrics(rollouts.scored),
        }

    # --- Shares ------------------------------------------------------------------------------------------------------

    def _minibatches(self, trained: Sequence[int], epoch: int) -> list[list[int]]:
        """Split the trained prompts, given as indices, into the minibatches of one epoch."""
        section = self._recipe.ppo
        parts = minibatches(len(trained), section.minibatches, self._recipe.training.seed, self.number, epoch)
        return [[trained[place] for place in part] for part in parts]

    def _gathered(self, own: Sequence[V], count: int) -> list[V]:
        """Gather all `count` values in order; `own` are those of this process's share."""
        processes = self._parts.session.processes
        found = processes.gather_by_row(dict(zip(processes.share(range(count)), own, strict=True)))
        return [found[place] for place in range(count)]
