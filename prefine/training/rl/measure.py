"""Measures the tokens of an update's answers before its first optimiser step, by the training forward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from prefine.data.tokens.trees import PackedBatch, TokenTree, collate, microbatches
from prefine.models.forward.fused import unchanging_weights
from prefine.models.forward.packed import PackedModel, evaluating
from prefine.training.rl.policy import Policy


@torch.no_grad()
def measure(
    policy: PackedModel,
    reference: Callable[[PackedBatch], Tensor],
    groups: Iterable[Sequence[TokenTree]],
    max_tokens: int,
) -> dict[int, dict[str, Tensor]]:
    """Log-probabilities under policy and reference, entropies and values of trees' tokens, by the training forward.

    Args:
        policy: with the heads of an ActorCritic.
        reference: returns the reference's log-probabilities of a batch.
        groups: trees that are trained on together. In the same microbatches their matrix products round the same way,
            so the first ratios are exactly 1.

    Returns: by tree row, each (tokens of the tree,) fp32 on the CPU.
    """
    found: dict[int, list[dict[str, Tensor]]] = {}
    with evaluating(policy), unchanging_weights():
        for group in groups:
            for run in microbatches(group, max_tokens):
                for row, columns in _measured(policy, reference, run):
                    found.setdefault(row, []).append(columns)
    return {row: {name: torch.cat([part[name] for part in parts]) for name in parts[0]} for row, parts in found.items()}


@torch.no_grad()
def repeatability(policy: Policy, trees: Sequence[TokenTree], max_tokens: int) -> float:
    """Largest difference in a log-probability between two computations of the trees' first microbatch, nats."""
    batch = collate(next(microbatches(trees, max_tokens))).to(policy.model.device)
    with evaluating(policy.model):
        return float((policy.logprobs(batch) - policy.logprobs(batch)).abs().max())


def _measured(
    policy: PackedModel, reference: Callable[[PackedBatch], Tensor], run: Sequence[TokenTree]
) -> list[tuple[int, dict[str, Tensor]]]:
    """The row number and the columns of each tree; a tree may be a part of its row's."""
    batch = collate(run).to(policy.device)
    out = policy(batch, with_entropy=True)
    columns = {
        "logprobs": out.logprobs,
        "entropy": out.entropy,
        "values": torch.zeros_like(out.logprobs) if out.values is None else out.values,
        "reference": reference(batch),
    }
    sizes = [tree.supervised_tokens for tree in run]
    split = {name: torch.split(column.float().cpu(), sizes) for name, column in columns.items()}
    return [(tree.row, {name: parts[place] for name, parts in split.items()}) for place, tree in enumerate(run)]
