"""The start of an adapter on a model's principal components (PiSSA, Meng et al. 2024, arXiv 2404.02948).

PiSSA splits a weight W into its r largest principal components s B0 A0 and the rest, freezes the rest and trains A and
B from A0 and B0. Here the base keeps W, and the adapter has rank 2 r: s (B A - B0 A0). The first half of it learns, the
second one holds the start. So outputs and gradients are those of PiSSA, but the model without its adapter is the
original one (the reference of DPO and PPO), a reward model can share its weights, and what is saved is a plain LoRA
adapter of the original base, as peft's conversion of a trained PiSSA adapter gives.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

PISSA = "pissa"
_PASSES = f"{PISSA}_niter_"


def with_held_half(rank: int, alpha: float, *, rank_stabilised: bool) -> tuple[int, float]:
    """Rank and alpha of the adapter that has both halves, whose scale is that of the given rank and alpha."""
    return 2 * rank, alpha * (math.sqrt(2) if rank_stabilised else 2)


@torch.no_grad()
def start_on_principal(model: Any, adapter: str, init: str) -> None:
    """Set an adapter's weights to the principal components of its base's layers, and hold the second half.

    Args:
        model: peft's, with a new adapter of twice the rank that learns.
        init: pissa for the exact decomposition; pissa_niter_N for a randomised one in N passes (Halko et al. 2009,
            arXiv 0909.4061), which draws from torch's global generator.

    Raises:
        ValueError: a layer is not linear, or smaller than the rank.
    """
    for name, layer in _layers(model):
        weight = getattr(layer.get_base_layer(), "weight", None)
        if adapter not in layer.lora_A or weight is None or weight.dim() != 2:
            raise ValueError(f"{name} is not a linear layer, and PiSSA starts on the principal components of one")
        rank = layer.r[adapter] // 2
        if rank > min(weight.shape):
            raise ValueError(f"{name} has {min(weight.shape)} principal components, fewer than lora.r {rank}")
        down, up = principal(weight.T if layer.fan_in_fan_out else weight, rank, layer.scaling[adapter], init)
        layer.lora_A[adapter].weight.copy_(torch.cat([down, down]))
        layer.lora_B[adapter].weight.copy_(torch.cat([up, -up], dim=1))
    model.holds_start = True
    hold(model, adapter)


def principal(weight: Tensor, rank: int, scale: float, init: str) -> tuple[Tensor, Tensor]:
    """A0 (r, I) and B0 (O, r), fp32, with scale B0 A0 the best approximation of W (O, I) of that rank."""
    wide = weight.detach().float()
    if init == PISSA:
        left, values, right = torch.linalg.svd(wide, full_matrices=False)
        left, values, right = left[:, :rank], values[:rank], right[:rank]
    else:
        left, values, columns = torch.svd_lowrank(wide, rank, niter=int(init.removeprefix(_PASSES)))
        right = columns.T
    root = (values / scale).sqrt()
    return root[:, None] * right, left * root


def hold(model: Any, adapter: str) -> None:
    """Give the second half of an adapter's weights no gradient; nothing for a model that does not hold its start."""
    if not holds_start(model):
        return
    for _, layer in _layers(model):
        if adapter in layer.lora_A:
            layer.lora_A[adapter].weight.register_hook(partial(_first_half, dim=0))
            layer.lora_B[adapter].weight.register_hook(partial(_first_half, dim=1))


def holds_start(model: nn.Module) -> bool:
    """Whether half of the model's own adapter holds its start."""
    return bool(getattr(model, "holds_start", False))


def _first_half(gradient: Tensor, dim: int) -> Tensor:
    kept = gradient.clone()
    kept.narrow(dim, kept.shape[dim] // 2, kept.shape[dim] // 2).zero_()
    return kept


def _layers(model: Any) -> list[tuple[str, Any]]:
    from peft.tuners.lora.layer import LoraLayer

    return [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]
