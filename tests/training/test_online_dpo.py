"""Online DPO takes the loss of plain DPO and of TRL 1.16's OnlineDPOTrainer on the pairs that the rewards say."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from prefine.data.tokens.trees import TokenTree, collate
from prefine.models.actor_critic import TokenOutputs
from prefine.objectives.masked import Paired, padded
from prefine.recipe.dpo import DpoSection
from prefine.recipe.rl import PpoRecipe
from prefine.recipe.stage import StageRecipe
from prefine.training.rl.algorithms import KnownTokens, algorithm_of
from prefine.training.rl.rewards import Scored, shape
from prefine.training.rl.rollouts import Rollouts
from prefine.training.stages.dpo import pair_outcome
from tests.training import tiny
from tests.training.rl.test_stage import QUICK, rows

Make = Callable[..., StageRecipe]
LENGTHS = torch.tensor([1, 5, 4, 8, 3, 8, 2, 2])  # two answers to each of four prompts
ENDED = LENGTHS < 8
SCORES = torch.tensor([1.0, 0.0, 0.25, 0.75, -1.0, 2.0, 0.0, 0.5])
BETA = 0.3
RECIPE = PpoRecipe.model_validate(
    {"advantage": "online_dpo", "kl": {"coefficient": BETA}, "reward": {"missing_eos": "penalty"}}
)


def logprobs(seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return -1 + 0.5 * torch.randn(int(LENGTHS.sum()), generator=draw)


def rollouts(scores: Tensor) -> Rollouts:
    answers = [tuple([2] * int(length) for length in LENGTHS[place : place + 2]) for place in range(0, 8, 2)]
    trees = tuple(TokenTree([1], own, (None,) * 2, place) for place, own in enumerate(answers))
    zeros = torch.zeros(int(LENGTHS.sum()))
    scored = Scored(scores, shape(scores, LENGTHS, ENDED, RECIPE.reward, 8), {}, {})
    return Rollouts(trees, (0, 1, 2, 3), ("",) * 8, LENGTHS, ENDED, scored, logprobs(1), logprobs(2), zeros, zeros)


def ours(scores: Tensor = SCORES) -> tuple[float, Tensor, dict[str, float]]:
    """The loss of a step on all prompts that are no ties, its gradient and its logged means; a microbatch a prompt."""
    algorithm, held = algorithm_of(RECIPE), rollouts(scores)
    targets = algorithm.targets(held, algorithm.token_rewards(held, BETA))
    trained = algorithm.trained_prompts(held.scored, ENDED)
    weights = algorithm.weights(held, trained)
    leaf, total, logged = logprobs(3).requires_grad_(), torch.zeros(()), defaultdict[str, float](float)
    tokens = sum(held.trees[place].supervised_tokens for place in trained)
    for place in trained:
        batch = collate([held.trees[place]])
        known = KnownTokens.of(batch, held, targets, weights)
        loss, parts = algorithm.loss(TokenOutputs(leaf[held.places(batch.answers_of_rows)], None, None), known, BETA)
        total = total + loss / tokens
        for name, part in parts.items():
            logged[name] += float(part.detach().sum()) / tokens
    total.backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    return total.item(), leaf.grad, logged


def test_loss_and_gradient_are_trls() -> None:
    """With its penalty of answers that do not end, which decides the second prompt's pair."""
    from trl.experimental.online_dpo import OnlineDPOTrainer

    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])  # theirs: all first answers, then all second ones
    leaf = logprobs(3).requires_grad_()
    mask = padded(torch.ones(int(LENGTHS.sum())), LENGTHS)[0][order]
    of = {"policy": leaf, "reference": logprobs(2)}
    ids = torch.where(ENDED[order, None], 9, 0).expand_as(mask)
    trainer: Any = SimpleNamespace(
        args=SimpleNamespace(
            use_vllm=False,
            missing_eos_penalty=1.0,
            loss_type="sigmoid",
            torch_empty_cache_steps=None,
            optim="",
            n_gpu=1,
            gradient_accumulation_steps=1,
        ),
        _generate=lambda *_: (None, None, ids, mask, None),
        _forward=lambda model, *_: padded(of[model], LENGTHS)[0][order],
        _calculate_rewards_from_functions=lambda **_: SCORES[order].clone(),
        eos_token_ids=[9],
        ref_model="reference",
        processing_class=SimpleNamespace(batch_decode=lambda ids, **_: [""] * len(ids)),
        reward_funcs=[],
        stats=defaultdict(list),
        beta=BETA,
        accelerator=SimpleNamespace(gather_for_metrics=lambda x: x, backward=lambda loss, **_: loss.backward()),
        state=SimpleNamespace(global_step=0),
    )

    class Policy(str):
        __slots__ = ()

        def train(self) -> None:
            """Theirs puts it into training mode."""

    loss = OnlineDPOTrainer.training_step(trainer, Policy("policy"), {"prompt": ["a", "b", "c", "d"]})  # type: ignore[arg-type]
    mine, gradient, logged = ours()
    assert mine == pytest.approx(loss.item(), rel=1e-5)
    assert leaf.grad is not None
    assert leaf.grad.abs().max() > 1e-3
    torch.testing.assert_close(gradient, leaf.grad, rtol=1e-5, atol=1e-7)
    assert logged["margin"] == pytest.approx(trainer.stats["rewards/margins"][0], rel=1e-4)
    assert logged["accuracy"] == pytest.approx(trainer.stats["rewards/accuracies"][0])
    found = algorithm_of(RECIPE).metrics(rollouts(SCORES).scored)["score_margin"]
    assert found == pytest.approx(trainer.stats["objective/scores_margin"][0])


def test_the_loss_is_that_of_dpo_on_the_pairs() -> None:
    """A tie is left out: the mean is over the other three pairs. The answer that was cut is the rejected one."""
    scores = torch.tensor(
        [1.0, 0.0, 0.0, 0.75, -1.0, 2.0, 0.5, 0.5]
    )  # with -1 of what was cut: 1 0 | 0 -.25 | -1 1 | tie
    policy, reference = (padded(logprobs(seed), LENGTHS)[0].sum(1) for seed in (3, 2))
    chosen, rejected = [0, 2, 5], [1, 3, 4]
    tokens = Paired(LENGTHS[chosen].float(), LENGTHS[rejected].float())
    wanted = pair_outcome(
        DpoSection(beta=BETA),
        Paired(policy[chosen], policy[rejected]),
        Paired(reference[chosen], reference[rejected]),
        tokens,
    )
    mine, _, logged = ours(scores)
    assert mine == pytest.approx(wanted.loss.mean().item(), rel=1e-5)
    assert logged["margin"] == pytest.approx(wanted.margin.mean().item(), rel=1e-4)


CHANGES = {**QUICK, "advantage": "online_dpo", "kl.coefficient": 0.2, "training.batch_size": 8, "lora.dropout": 0.0}


def test_an_update_does_not_depend_on_microbatches(make: Make) -> None:
    """Both answers of a pair are always in one; its first loss is ln 2, as the policy is its reference."""
    found = []
    for budget in (16, 10_000):
        changes = {**CHANGES, "training.max_steps": 1, "training.max_grad_norm": None, "ppo.epochs": 1}
        changes |= {"ppo.minibatches": 1, "training.max_tokens_per_microbatch": budget}
        made = make("ppo", f"of-{budget}", changes)
        tiny.train(made)
        found.append(rows(made)[0])
    assert found[0]["policy_loss"] == pytest.approx(0.693147, abs=1e-5)
    assert found[0]["grad_norm"] > 1e-3
    for name in ("loss", "grad_norm", "score_margin"):
        assert found[0][name] == pytest.approx(found[1][name], rel=1e-4), name


def test_it_learns_the_pairs(make: Make) -> None:
    """Three passes over an update's pairs: their mean loss falls below ln 2, and the margin rises from 0."""
    changes = {"training.max_steps": 1, "training.batch_size": 19, "training.learning_rate": 1e-2, "ppo.epochs": 3}
    changes |= {"rollout.samples_per_prompt": 4, "kl.coefficient": 0.1, "reward.missing_eos": "none"}
    made = make("ppo", changes={**CHANGES, **changes})
    tiny.train(made)
    (row,) = rows(made)
    assert row["policy_loss"] < 0.65
    assert row["margin"] > 0.1
    assert row["accuracy"] > 0.6
