"""GRPO's losses and their gradients are those of TRL 1.16's GRPOTrainer, on the same log-probabilities and rewards.

TRL's `_compute_loss` does the work, on log-probabilities that it is given in place of a model's. A step is one batch.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from prefine.data.tokens.trees import TokenTree, collate
from prefine.models.actor_critic import TokenOutputs
from prefine.objectives.masked import padded
from prefine.recipe.rl import PpoRecipe
from prefine.training.rl.algorithms import KnownTokens, algorithm_of
from prefine.training.rl.rewards import Scored
from prefine.training.rl.rollouts import Rollouts

LENGTHS = torch.tensor([1, 5, 2, 8, 3, 8])  # three answers to each of two prompts
LONGEST, BETA, LOW, HIGH = 8, 0.04, 0.2, 0.28
REWARDS = torch.tensor([1.0, 0.0, 0.25, -1.0, 2.0, 2.0])


def logprobs(seed: int) -> Tensor:
    """Far enough apart that some ratios are beyond either clip."""
    draw = torch.Generator().manual_seed(seed)
    return -1 + 0.3 * torch.randn(int(LENGTHS.sum()), generator=draw)


def rollouts(ended: Tensor) -> Rollouts:
    answers = [tuple([2] * int(length) for length in LENGTHS[place : place + 3]) for place in (0, 3)]
    trees = tuple(TokenTree([1], own, (None,) * 3, place, apart=True) for place, own in enumerate(answers))
    zeros = torch.zeros(int(LENGTHS.sum()))
    scored = Scored(REWARDS, REWARDS, {}, {})
    return Rollouts(trees, (0, 1), ("",) * 6, LENGTHS, ended, scored, logprobs(1), logprobs(2), zeros, zeros)


def ours(settings: dict[str, Any], ended: Tensor) -> tuple[float, Tensor]:
    """The loss of a step and its gradient, as an update and the loop compute them."""
    recipe = PpoRecipe.model_validate(settings)
    algorithm, held = algorithm_of(recipe), rollouts(ended)
    targets = algorithm.targets(held, algorithm.token_rewards(held, BETA))
    weights = algorithm.weights(held, algorithm.trained_prompts(held.scored, ended))
    leaf = logprobs(3).requires_grad_()
    total = torch.zeros(())
    for tree in held.trees:  # each prompt in a microbatch of its own
        batch = collate([tree])
        own = held.places(batch.answers_of_rows)
        known = KnownTokens.of(batch, held, targets, weights)
        total = total + algorithm.loss(TokenOutputs(leaf[own], None, None), known, BETA)[0]
    mean = total / len(leaf)
    mean.backward()
    assert leaf.grad is not None
    return mean.item(), leaf.grad


def theirs(loss_type: str, scale: str, ended: Tensor) -> tuple[float, Tensor]:
    """TRL's loss and gradient, with its advantages: rewards minus the group's mean over its std or the batch's."""
    from trl import GRPOTrainer

    def of_rows(values: Tensor) -> Tensor:
        return padded(values, LENGTHS)[0]

    groups = REWARDS.view(2, 3)
    spread = {"group": groups.std(1, keepdim=True), "batch": REWARDS.std(), "none": torch.tensor(1 - 1e-4)}[scale]
    mask = pad_sequence([torch.ones(int(length)) for length in LENGTHS], batch_first=True) * ended[:, None]
    leaf = logprobs(3).requires_grad_()
    trainer: Any = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (of_rows(leaf), torch.zeros_like(mask), None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        beta=BETA,
        args=SimpleNamespace(use_bias_correction_kl=True, delta=None, steps_per_generation=1),
        epsilon_low=LOW,
        epsilon_high=HIGH,
        loss_type=loss_type,
        use_vllm=False,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        max_completion_length=LONGEST,
        accelerator=SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, **_: x),
        _entropy_bonus_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
    )
    inputs = {
        "prompt_ids": torch.ones(6, 1),
        "prompt_mask": torch.ones(6, 1),
        "completion_ids": torch.ones_like(mask),
        "completion_mask": mask,
        "advantages": ((groups - groups.mean(1, keepdim=True)) / (spread + 1e-4)).flatten(),
        "old_per_token_logps": of_rows(logprobs(1)),
        "ref_per_token_logps": of_rows(logprobs(2)),
        "num_items_in_batch": mask.sum(),
    }
    loss = GRPOTrainer._compute_loss(trainer, None, inputs)
    loss.backward()
    assert leaf.grad is not None
    return loss.item(), leaf.grad


TYPES = {"grpo": "answers", "bnpo": "tokens", "dapo": "tokens", "dr_grpo": "max_length"}
ALL = torch.ones(6, dtype=torch.bool)


@pytest.mark.parametrize(("loss_type", "scale"), list(itertools.product(TYPES, ["group", "batch", "none"])))
def test_losses_and_gradients(loss_type: str, scale: str) -> None:
    settings = {
        "advantage": "grpo",
        "rollout": {"samples_per_prompt": 3, "max_new_tokens": LONGEST},
        "ppo": {
            "clip": LOW,
            "clip_high": HIGH,
            "loss_average": TYPES[loss_type],
            "advantage_std": {"batch": "update"}.get(scale, scale),
        },
    }
    compare(ours(settings, ALL), theirs(loss_type, scale, ALL))


@pytest.mark.parametrize("loss_type", ["bnpo", "dapo"])
def test_answers_that_were_cut(loss_type: str) -> None:
    """TRL's other two averages also divide by the answers that it leaves out; ours by those that are left."""
    ended = LENGTHS < LONGEST
    rollout = {"samples_per_prompt": 3, "max_new_tokens": LONGEST, "skip_truncated": True}
    settings = {"advantage": "grpo", "rollout": rollout, "ppo": {"clip": LOW, "clip_high": HIGH}}
    compare(ours(settings, ended), theirs(loss_type, "group", ended))


def compare(one: tuple[float, Tensor], other: tuple[float, Tensor]) -> None:
    assert one[0] == pytest.approx(other[0], rel=1e-5, abs=1e-6)
    assert other[1].abs().max() > 1e-3
    torch.testing.assert_close(one[1], other[1], rtol=1e-5, atol=1e-7)
