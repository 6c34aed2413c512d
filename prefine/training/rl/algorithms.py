"""Reinforcement learning algorithms: from an update's rewards to advantages and returns, and the loss.

To add one, write a class and add it to `ALGORITHMS` under the name that the recipe's `advantage` uses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prefine.data.tokens.trees import PackedBatch
from prefine.models.actor_critic import TokenOutputs
from prefine.objectives import advantage, dpo, kl, ppo
from prefine.objectives.masked import whitened
from prefine.recipe.rl import PpoRecipe
from prefine.training.rl.rewards import Scored
from prefine.training.rl.rollouts import Rollouts


@dataclass(frozen=True)
class Targets:
    """Training targets of an update's T tokens, (T,) fp32 each.

    Attributes:
        advantages: how much better each token was than expected.
        returns: the critic's targets; zeros without a critic.
    """

    advantages: Tensor
    returns: Tensor


@dataclass(frozen=True)
class KnownTokens:
    """Values of R tokens from before the update's first optimiser step, (R,) fp32 each, on the model's device.

    Attributes:
        logprobs: under the policy that generated them.
        reference: under the reference.
        values: the critic's predictions; zeros without a critic.
        advantages: see Targets.
        returns: see Targets.
        prompts: (R,) int64, the number of each token's prompt.
        weights: of the policy's loss, see Algorithm.weights; None for 1.
    """

    logprobs: Tensor
    reference: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    prompts: Tensor
    weights: Tensor | None = None

    @staticmethod
    def of(batch: PackedBatch, rollouts: Rollouts, targets: Targets, weights: Tensor | None) -> KnownTokens:
        """The values of a batch's R targets.

        Args:
            weights: (T,) of all tokens.
        """
        places = rollouts.places(batch.answers_of_rows)

        def own(column: Tensor) -> Tensor:
            return column[places].to(batch.targets.device)

        return KnownTokens(
            own(rollouts.logprobs),
            own(rollouts.reference),
            own(rollouts.values),
            own(targets.advantages),
            own(targets.returns),
            own(rollouts.prompts),
            None if weights is None else own(weights),
        )

    def weighted(self, values: Tensor) -> Tensor:
        """(R,) values times the weights."""
        return values if self.weights is None else values * self.weights


class Algorithm(ABC):
    """Policy gradients with a clipped ratio; subclasses say how advantages are estimated.

    Attributes:
        has_critic: whether a critic is trained with the policy.
        kl_in_loss: whether the KL penalty is part of the loss; otherwise it is part of the token rewards.
        apart: whether the loss of an answer needs no other answer, so that the answers to a prompt may be in different
            microbatches.
    """

    has_critic: ClassVar[bool] = False
    kl_in_loss: ClassVar[bool] = False
    apart: ClassVar[bool] = True

    def __init__(self, recipe: PpoRecipe) -> None:
        self._recipe = recipe

    def token_rewards(self, rollouts: Rollouts, kl_coefficient: float) -> Tensor:
        """(T,) each answer's shaped score at its last token, and the KL penalty at each token unless it is in the loss.

        See objectives.advantage.token_rewards.
        """
        penalised = torch.zeros_like(rollouts.kl) if self.kl_in_loss else rollouts.kl
        return advantage.token_rewards(rollouts.scored.shaped, penalised, rollouts.lengths, kl_coefficient)

    @abstractmethod
    def targets(self, rollouts: Rollouts, rewards: Tensor) -> Targets:
        """Targets of all tokens.

        Args:
            rewards: (T,) as `token_rewards` returns them.
        """

    def trained_prompts(self, scored: Scored, ended: Tensor) -> list[int]:
        """Indices of the prompts whose answers the update trains on, in order. By default all P.

        Args:
            ended: (S,) bool, whether an answer ended its turn itself.
        """
        return list(range(len(scored.shaped) // self._recipe.samples_per_prompt))

    def counted(self, ended: Tensor) -> Tensor:
        """(S,) bool: the answers that are learned from, if their prompts are trained on. By default all."""
        return torch.ones_like(ended)

    def weights(self, rollouts: Rollouts, prompts: Sequence[int]) -> Tensor | None:
        """(T,) weights of the policy's loss in an optimiser step, as ppo.loss_average says; None if all are 1.

        Args:
            prompts: indices of the prompts of the step, over all processes; each has an answer that counts.
        """
        counted, average = self.counted(rollouts.ended), self._recipe.ppo.loss_average
        if average == "tokens" and bool(counted.all()):
            return None
        samples = self._recipe.samples_per_prompt
        answers = torch.tensor([place * samples + sample for place in prompts for sample in range(samples)])
        spread = torch.zeros(len(rollouts.logprobs))
        spread[rollouts.places((place, range(samples)) for place in prompts)] = ppo.average_weights(
            average, rollouts.lengths[answers], counted[answers], self._recipe.rollout.max_new_tokens
        )
        return spread

    def compared(self, answers: int) -> int:
        """How many of `answers` answers are compared with each other. By default all."""
        return answers

    def metrics(self, scored: Scored) -> dict[str, float]:
        """Metrics of an update that only this algorithm has."""
        return {}

    def loss(
        self, out: TokenOutputs, known: KnownTokens, kl_coefficient: float, *, critic_only: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the loss over R tokens, and its parts and diagnostics by name, (R,) each.

        Args:
            out: outputs of the current model.
            kl_coefficient: weight of the KL penalty, if it is in the loss.
            critic_only: give the policy's terms weight 0, while the critic warms up.
        """
        section = self._recipe.ppo
        policy_weight = 0.0 if critic_only else 1.0
        policy = ppo.policy_loss(out.logprobs, known.logprobs, known.advantages, section.clip, section.clip_high)
        parts = {"policy_loss": known.weighted(policy)}
        loss = parts["policy_loss"].sum() * policy_weight
        if out.values is not None:
            parts["value_loss"] = ppo.value_loss(out.values, known.values, known.returns, section.value_clip)
            loss = loss + section.value_coefficient * parts["value_loss"].sum()
        if self.kl_in_loss:
            parts["kl_loss"] = known.weighted(kl.kl_loss(out.logprobs, known.logprobs, known.reference))
            loss = loss + kl_coefficient * parts["kl_loss"].sum()
        if out.entropy is not None:
            loss = loss - policy_weight * section.entropy_coefficient * known.weighted(out.entropy).sum()
        return loss, parts | self._diagnostics(out, known)

    @torch.no_grad()
    def _diagnostics(self, out: TokenOutputs, known: KnownTokens) -> dict[str, Tensor]:
        section = self._recipe.ppo
        clipped = ppo.policy_clipped(out.logprobs, known.logprobs, known.advantages, section.clip, section.clip_high)
        found = {"approx_kl": ppo.approximate_kl(out.logprobs, known.logprobs), "clip_fraction": clipped.float()}
        if out.values is not None:
            values = ppo.value_clipped(out.values, known.values, known.returns, section.value_clip)
            found["value_clip_fraction"] = values.float()
        return found


class Gae(Algorithm):
    """PPO: generalised advantage estimates per token, with a critic (Schulman et al. 2015, arXiv 1506.02438)."""

    has_critic = True

    def targets(self, rollouts: Rollouts, rewards: Tensor) -> Targets:
        """See objectives.advantage.gae; the critic learns advantage + value."""
        section = self._recipe.ppo
        if self._recipe.reward.whiten:
            rewards = whitened(rewards, shift_mean=False)
        advantages = advantage.gae(rewards, rollouts.values, rollouts.lengths, section.gamma, section.lam)
        returns = advantages + rollouts.values
        return Targets(whitened(advantages) if section.normalise_advantages else advantages, returns)


class GroupAlgorithm(Algorithm):
    """No critic: compares the n answers to each prompt. Each token gets the advantage of its answer."""

    @abstractmethod
    def advantages(self, rewards: Tensor) -> Tensor:
        """(P, n) advantages of the answers, from their (P, n) rewards."""

    def targets(self, rollouts: Rollouts, rewards: Tensor) -> Targets:
        """See `advantages`."""
        of_answers = self.advantages(self._groups(advantage.returns(rewards, rollouts.lengths)))
        of_tokens = of_answers.flatten().repeat_interleave(rollouts.lengths)
        return Targets(of_tokens, torch.zeros_like(of_tokens))

    def without_signal(self, scored: Scored) -> Tensor:
        """(P,) bool: prompts whose answers all have the same reward, so that nothing is learned from them."""
        return advantage.without_signal(self._groups(scored.shaped))

    def trained_prompts(self, scored: Scored, ended: Tensor) -> list[int]:
        """All prompts that have an answer to learn from; with rollout.drop_equal_groups only those with a signal."""
        learned = self._groups(self.counted(ended)).any(1)
        if self._recipe.rollout.drop_equal_groups:
            learned &= ~self.without_signal(scored)
        return [place for place, learns in enumerate(learned.tolist()) if learns]

    def counted(self, ended: Tensor) -> Tensor:
        """All answers; with rollout.skip_truncated those that ended."""
        return ended if self._recipe.rollout.skip_truncated else super().counted(ended)

    def compared(self, answers: int) -> int:
        """The number of answers to one prompt."""
        return self._recipe.samples_per_prompt

    def metrics(self, scored: Scored) -> dict[str, float]:
        """The share of prompts without signal."""
        return {"groups_without_signal": float(self.without_signal(scored).float().mean())}

    def _groups(self, of_answers: Tensor) -> Tensor:
        """Reshape (P n,) to (P, n)."""
        return of_answers.view(-1, self._recipe.samples_per_prompt)


class Rloo(GroupAlgorithm):
    """REINFORCE with the mean of the other answers as baseline (Ahmadian et al. 2024, arXiv 2402.14740)."""

    def advantages(self, rewards: Tensor) -> Tensor:
        """See objectives.advantage.rloo. The rewards include the KL penalty."""
        return advantage.rloo(rewards)


class Grpo(GroupAlgorithm):
    """Group relative policy optimisation (Shao et al. 2024, arXiv 2402.03300).

    Rewards are divided by their group's standard deviation. So they exclude the KL penalty, which is part of the loss
    (objectives.kl.kl_loss).
    """

    kl_in_loss = True

    def advantages(self, rewards: Tensor) -> Tensor:
        """See objectives.advantage.grpo."""
        return advantage.grpo(rewards, self._recipe.ppo.advantage_std)


class OnlineDpo(GroupAlgorithm):
    """Online DPO (Guo et al. 2024, arXiv 2402.04792): DPO on the best and the worst of the answers to each prompt.

    The reward says which they are. The KL coefficient is the beta of DPO's loss, which pulls towards the reference.
    """

    kl_in_loss = True
    apart = False

    def advantages(self, rewards: Tensor) -> Tensor:
        """1 for the chosen answer and -1 for the rejected one: see objectives.advantage.best_and_worst."""
        return advantage.best_and_worst(rewards)

    def trained_prompts(self, scored: Scored, ended: Tensor) -> list[int]:
        """Those whose answers are not all equally good: a tie says nothing about which to prefer."""
        return [place for place, silent in enumerate(self.without_signal(scored).tolist()) if not silent]

    def weights(self, rollouts: Rollouts, prompts: Sequence[int]) -> Tensor | None:
        """(T,) tokens of the step over its pairs: the loop's mean over tokens becomes a mean over pairs."""
        tokens = sum(len(answer) for place in prompts for answer in rollouts.trees[place].answers)
        return torch.full_like(rollouts.logprobs, tokens / max(1, len(prompts)))

    def metrics(self, scored: Scored) -> dict[str, float]:
        """Also the mean difference of the rewards of chosen and rejected answers, ties as 0."""
        groups = self._groups(scored.shaped)
        return {**super().metrics(scored), "score_margin": float((groups.amax(1) - groups.amin(1)).mean())}

    def loss(
        self, out: TokenOutputs, known: KnownTokens, kl_coefficient: float, *, critic_only: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See Algorithm.loss; figures of pairs are (B,) for B pairs."""
        assert known.weights is not None  # noqa: S101 - see `weights`
        found, pairs = torch.unique(known.prompts, return_inverse=True)
        count = len(found)
        margins = dpo.margin_of_tokens(out.logprobs - known.reference, known.advantages, pairs, count)
        weight = known.weights[0]  # all are equal
        parts = {
            "policy_loss": dpo.sigmoid(margins, kl_coefficient) * weight,
            "accuracy": (margins > 0).float() * weight,
            "margin": kl_coefficient * margins * weight,
            "approx_kl": ppo.approximate_kl(out.logprobs, known.logprobs),
        }
        return parts["policy_loss"].sum(), parts


ALGORITHMS: dict[str, type[Algorithm]] = {"gae": Gae, "rloo": Rloo, "grpo": Grpo, "online_dpo": OnlineDpo}


def algorithm_of(recipe: PpoRecipe) -> Algorithm:
    """The algorithm that a recipe names."""
    return ALGORITHMS[recipe.advantage](recipe)
