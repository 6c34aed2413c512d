"""What an update's tokens are moved towards: the rewards of answers with the KL penalty, and advantages from them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prefine.objectives import advantage
from prefine.objectives.masked import whitened
from prefine.recipe_ppo import PpoRecipe
from prefine.training.rewards import Scored
from prefine.training.rollout import Rollouts


@dataclass(frozen=True)
class Targets:
    """What an update's tokens are moved towards, (T,) fp32 each.

    Attributes:
        advantages: how much better each token was than expected.
        returns: what the critic should have expected; zeros without a critic.
    """

    advantages: Tensor
    returns: Tensor


def estimate(recipe: PpoRecipe, rollouts: Rollouts, scored: Scored, coefficient: float) -> Targets:
    """Advantages by the recipe's method.

    The KL penalty is part of the token rewards of gae and rloo. Rewards of grpo go without it: they are divided by the
    deviation of their group, and the penalty is part of the loss (see `objectives.advantage.grpo`).

    Args:
        coefficient: of the KL penalty.
    """
    lengths = rollouts.lengths
    if recipe.advantage == "grpo":
        return _of_answers(advantage.grpo(_groups(recipe, scored.shaped)), lengths)
    rewards = advantage.token_rewards(scored.shaped, rollouts.kl, lengths, coefficient)
    if recipe.advantage == "rloo":
        return _of_answers(advantage.rloo(_groups(recipe, advantage.returns(rewards, lengths))), lengths)
    section = recipe.ppo
    if recipe.reward.whiten:
        rewards = whitened(rewards, shift_mean=False)
    advantages = advantage.gae(rewards, rollouts.values, lengths, section.gamma, section.lam)
    returns = advantages + rollouts.values
    return Targets(whitened(advantages) if section.normalise_advantages else advantages, returns)


def without_signal(recipe: PpoRecipe, scored: Scored) -> Tensor:
    """(P,) bool: prompts whose answers all have the same reward, so that rloo and grpo learn nothing from it.

    All False for gae, which compares an answer to what the critic expected.
    """
    groups = _groups(recipe, scored.shaped)
    return torch.zeros(len(groups), dtype=torch.bool) if recipe.advantage == "gae" else advantage.without_signal(groups)


def trained_places(recipe: PpoRecipe, scored: Scored) -> list[int]:
    """Places of the prompts that an update trains on: all, or with rollout.drop_equal_groups those with a signal."""
    silent = without_signal(recipe, scored)
    return [place for place, equal in enumerate(silent.tolist()) if not (recipe.rollout.drop_equal_groups and equal)]


def _groups(recipe: PpoRecipe, of_answers: Tensor) -> Tensor:
    """(P, n) from (P n,)."""
    return of_answers.view(-1, recipe.samples_per_prompt)


def _of_answers(advantages: Tensor, lengths: Tensor) -> Targets:
    """The advantage of an answer is that of each of its tokens."""
    of_tokens = advantages.flatten().repeat_interleave(lengths)
    return Targets(of_tokens, torch.zeros_like(of_tokens))
