"""Autograd functions that compute what transformers' and peft's modules compute, in fewer passes over memory.

Frozen base weights need no weight gradients, and a LoRA update needs only its rank-r product. Computing them by hand
avoids the casts and stored copies of the composed modules. `install` replaces a module's forward only after a probe
(models/forward/module_probe.py) has shown that ours gives the same output and gradients as the module's own. So a
variant (Gemma's 1 + weight, a norm with a gate) is recognised by what it computes, not by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from types import MethodType
from typing import Any, cast

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prefine.models.forward.module_probe import computes_same, takes_one_tensor

_GATED_PARTS = ("gate_proj", "up_proj", "down_proj")
# Weights are packed for this many rows; products of other numbers of rows can read them as well.
_PACKED_FOR_ROWS = 64
# Packed weights may take this fraction of the free memory.
_SHARE_FOR_PACKING = 0.25


class _LoraLinear(torch.autograd.Function):
    """x W^T + bias + scale (x A^T) B^T with W and bias frozen (Hu et al. 2021, arXiv 2106.09685, eq. 3).

    x (T, I) in the compute type, W (O, I) frozen, A (r, I) and B (O, r) trainable, usually in fp32. `dropped` is the
    LoRA branch's input after dropout, None without dropout.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dropped: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        scale: float,
    ) -> Tensor:
        a, b = down.to(x.dtype), (up * scale).to(x.dtype)
        branch = x if dropped is None else dropped
        rank = branch @ a.T
        out = x @ weight.T if bias is None else torch.addmm(bias, x, weight.T)
        out.addmm_(rank, b.T)
        ctx.save_for_backward(x, dropped, weight, a, b, rank)
        ctx.scale, ctx.learned = scale, down.dtype
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, dropped, weight, a, b, rank = ctx.saved_tensors
        branch = x if dropped is None else dropped
        grad_rank = grad @ b
        grad_down = (grad_rank.T @ branch).to(ctx.learned)
        grad_up = (rank.T @ grad).T.to(ctx.learned).mul_(ctx.scale)
        grad_x = grad_branch = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ weight
            if dropped is None:
                grad_x.addmm_(grad_rank, a)
        if dropped is not None:
            grad_branch = grad_rank @ a
        return grad_x, grad_branch, None, None, grad_down, grad_up, None


class _RmsNorm(torch.autograd.Function):
    """weight * x / rms(x) over the last axis, statistics in fp32, weight frozen (Zhang and Sennrich 2019, eq. 4)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        out, inverse = _normed(x, weight, eps)
        ctx.save_for_backward(x, weight, inverse)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x, weight, inverse = ctx.saved_tensors
        unit = x.float() * inverse
        wide = (grad * weight).float()
        along = torch.linalg.vecdot(wide, unit).unsqueeze(-1).div_(-x.shape[-1])
        return wide.addcmul_(unit, along).mul_(inverse).to(x.dtype), None, None


class _SiluGate(torch.autograd.Function):
    """silu(gate) * up (Shazeer 2020, arXiv 2002.05202, eq. 6), keeping only its two inputs."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        grad_up = F.silu(gate).mul_(grad)
        return torch.ops.aten.silu_backward(up * grad, gate), grad_up


def _lora_forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Replaces peft's lora.Linear.forward; anything but one plain active adapter goes to peft's own."""
    name = self.active_adapters[0] if len(self.active_adapters) == 1 else None
    weight = self.base_layer.weight
    if self.disable_adapters and not self.merged and not args and not kwargs:
        return cast(Tensor, self.base_layer(x))
    variant = self.lora_variant.get(name)
    plain = (
        name in self.lora_A
        and not (args or kwargs or self.merged or self.disable_adapters)
        and (variant is None or (_is_dora(variant) and not self.fan_in_fan_out))
        and self.lora_B[name].bias is None
        and weight.dtype == _product_type(x)
        and not weight.requires_grad
        and (self.base_layer.bias is None or not self.base_layer.bias.requires_grad)
    )
    if not plain:
        return cast(Tensor, type(self).forward(self, x, *args, **kwargs))
    rows = x.reshape(-1, x.shape[-1]).to(weight.dtype)
    rate = self.lora_dropout[name]
    dropped = rate(rows) if isinstance(rate, nn.Dropout) and rate.p and self.training else None
    if variant is not None:
        return _dora_product(self, cast(str, name), rows, dropped).view(*x.shape[:-1], -1)
    down, up = self.lora_A[name].weight, self.lora_B[name].weight
    bias = self.base_layer.bias
    if dropped is None and not torch.is_grad_enabled():
        return _lora_product(self.base_layer, rows, *_casts(self, cast(str, name), rows.dtype)).view(*x.shape[:-1], -1)
    out: Tensor = _LoraLinear.apply(rows, dropped, weight, bias, down, up, self.scaling[name])  # type: ignore[no-untyped-call]
    return out.view(*x.shape[:-1], -1)


def _dora_product(self: Any, name: str, x: Tensor, dropped: Tensor | None) -> Tensor:
    """m (W + scale B A) x / |W + scale B A| + bias, by output (DoRA, Liu et al. 2024, arXiv 2402.09353, eq. 5).

    Unlike peft's, the norms are computed in fp32 also if the weights are bf16: at the start, where m is the norm, the
    layer is then its base. With dropout the base's part of the first term is that of x, as in peft.

    Args:
        x: (T, I) rows in the compute type.
        dropped: the same after dropout; None without dropout.
    """
    layer, down, up = self.base_layer, self.lora_A[name].weight, self.lora_B[name].weight
    ratio, scale = _dora_ratio(self, name), self.scaling[name]
    if dropped is None:
        out = _LoraLinear.apply(x, None, layer.weight, None, down, up, scale) * ratio  # type: ignore[no-untyped-call]
    else:
        update = F.linear(F.linear(dropped, down.to(x.dtype)), (up * scale).to(x.dtype))
        out = F.linear(x, layer.weight) + (ratio - 1) * F.linear(dropped, layer.weight) + ratio * update
    rounded: Tensor = out.to(x.dtype)
    return rounded if layer.bias is None else rounded + layer.bias


def _dora_ratio(self: Any, name: str) -> Tensor:
    """(O,) fp32: magnitudes over the norms of W + scale B A, which get no gradient (arXiv 2402.09353, sec. 4.3)."""
    found = _kept[-1].ratios.get((id(self), name)) if _kept and not torch.is_grad_enabled() else None
    if found is None:
        found = cast(Tensor, self.lora_magnitude_vector[name].weight / _dora_norms(self, name))
        if _kept and not torch.is_grad_enabled():
            _kept[-1].ratios[id(self), name] = found
    return found


@torch.no_grad()
def _dora_norms(self: Any, name: str) -> Tensor:
    """(O,) fp32: the norms of the rows of W + scale B A."""
    weight = self.base_layer.weight
    with torch.autocast(weight.device.type, enabled=False):
        down, up = self.lora_A[name].weight.float(), self.lora_B[name].weight.float()
        return cast(Tensor, torch.linalg.norm(torch.addmm(weight.float(), up, down, alpha=self.scaling[name]), dim=1))


@torch.no_grad()
def start_magnitudes(model: nn.Module, name: str) -> None:
    """Set the magnitudes of a new DoRA adapter to the norms in fp32; peft rounds them to the type of bf16 weights."""
    for layer in model.modules():
        if _is_lora(layer) and not cast(Any, layer).fan_in_fan_out and type(cast(Any, layer).base_layer) is nn.Linear:
            cast(Any, layer).lora_magnitude_vector[name].weight.copy_(_dora_norms(layer, name))


def _is_dora(variant: object) -> bool:
    from peft.tuners.lora.variants import DoraLinearVariant

    return type(variant) is DoraLinearVariant


@dataclass
class WeightCache:
    """Forms of the weights that are computed once while the weights do not change.

    Attributes:
        casts: an adapter's matrices in the compute type, by layer and name.
        ratios: magnitudes over norms of a DoRA adapter, by layer and name.
        packed: weights in oneDNN's layout, by layer; None if they are not packed.
    """

    casts: dict[tuple[int, str], tuple[Tensor, Tensor]] = field(default_factory=dict)
    packed: dict[int, Tensor] | None = None
    ratios: dict[tuple[int, str], Tensor] = field(default_factory=dict)


_kept: list[WeightCache] = []


@contextmanager
def unchanging_weights(kept: WeightCache | None = None) -> Iterator[None]:
    """Inside, no weights may change. Forwards without gradients cast each adapter only once.

    Args:
        kept: a cache for exactly these weights from earlier uses; it is read and extended.
    """
    _kept.append(WeightCache() if kept is None else kept)
    try:
        yield
    finally:
        _kept.pop()


def packed_weights(model: nn.Module) -> WeightCache:
    """Pack weights for oneDNN, if the processor has bf16 products and a second copy fits into free memory.

    The frozen bf16 linear layers of `model` are packed when they are first used: some 90 ms for 0.3 GB. Products of few
    rows then take as little as half as long.
    """
    weights = [module.weight for module in model.modules() if type(module) is nn.Linear]
    sizes = [w.nbytes for w in weights if w.dtype == torch.bfloat16 and w.device.type == "cpu" and not w.requires_grad]
    helps = bool(sizes) and _has_bf16_products()
    return WeightCache(
        packed={} if helps and sum(sizes) < psutil.virtual_memory().available * _SHARE_FOR_PACKING else None
    )


@lru_cache(maxsize=1)
def _has_bf16_products() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) if torch.backends.mkldnn.enabled else False


def _product(layer: nn.Linear, x: Tensor) -> Tensor:
    """x W^T + bias, x in the weight's type; with packed weights if there are any."""
    packed = _kept[-1].packed if _kept and not torch.is_grad_enabled() else None
    weight = layer.weight
    if packed is None or weight.dtype != torch.bfloat16 or weight.device.type != "cpu":
        return F.linear(x, weight, layer.bias)
    laid_out = packed.get(id(layer))
    if laid_out is None:
        laid_out = packed[id(layer)] = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _PACKED_FOR_ROWS)
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x, laid_out, layer.bias, "none", [], ""))


def _linear_forward(self: Any, x: Tensor) -> Tensor:
    """Replaces a frozen nn.Linear's forward."""
    if not _kept or self.weight.dtype != _product_type(x):
        return F.linear(x, self.weight, self.bias)
    return _product(self, x.to(self.weight.dtype))


def _lora_product(layer: nn.Linear, x: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """As _LoraLinear, with matrices in the compute type and `up` scaled; nothing is kept for a backward pass."""
    return _product(layer, x).addmm_(x @ down.T, up.T)


def _casts(layer: Any, name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """An adapter's two matrices in the compute type, the second one scaled."""
    found = _kept[-1].casts.get((id(layer), name)) if _kept else None
    if found is None:
        down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
        found = down.to(dtype), (up * layer.scaling[name]).to(dtype)
        if _kept:
            _kept[-1].casts[id(layer), name] = found
    return found


def _product_type(x: Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def _normed(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """What _RmsNorm computes, and 1 / rms(x) in fp32."""
    wide = x.float()
    norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    inverse = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    wide = wide.mul_(inverse) if wide is not x else wide * inverse
    return wide.to(x.dtype).mul_(weight), inverse


def _norm_forward(self: Any, x: Tensor) -> Tensor:
    """Replaces a frozen RMS norm's forward; rows of another type or width than the weight's go to its own."""
    if x.dtype != self.weight.dtype or x.shape[-1] != self.weight.shape[0] or self.weight.requires_grad:
        return cast(Tensor, type(self).forward(self, x))
    if not torch.is_grad_enabled():  # with few rows the overhead of an autograd function matters
        return _normed(x, self.weight, _epsilon(self))[0]
    out: Tensor = _RmsNorm.apply(x, self.weight, _epsilon(self))  # type: ignore[no-untyped-call]
    return out


def _gated_forward(self: Any, x: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return cast(Tensor, self.down_proj(F.silu(self.gate_proj(x)).mul_(self.up_proj(x))))
    gated: Tensor = _SiluGate.apply(self.gate_proj(x), self.up_proj(x))  # type: ignore[no-untyped-call]
    return cast(Tensor, self.down_proj(gated))


def _epsilon(module: nn.Module) -> float:
    return float(getattr(module, "variance_epsilon", getattr(module, "eps", 0.0)) or 0.0)


def _is_frozen_norm(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return (
        isinstance(weight, nn.Parameter)
        and weight.dim() == 1
        and not any(own.requires_grad for own in module.parameters())
        and _epsilon(module) > 0
        and not any(module.children())
        and takes_one_tensor(module)
    )


def _is_gated_mlp(module: nn.Module) -> bool:
    children = (getattr(module, name, None) for name in _GATED_PARTS)
    return all(isinstance(child, nn.Module) for child in children) and takes_one_tensor(module)


def install(model: nn.Module) -> dict[str, int]:
    """Give `model`'s modules the faster forwards if a probe shows that they compute the same.

    Modules that were replaced before stay replaced; forwards that others have replaced are left alone.

    Returns how many modules of each kind have ours: {"lora": ..., "norm": ..., "gated_mlp": ...}.
    """
    changed = {"lora": 0, "norm": 0, "gated_mlp": 0}
    training = [module for module in model.modules() if module.training]
    model.eval()
    for module in model.modules():
        if type(module) is nn.Linear and not module.weight.requires_grad and "forward" not in module.__dict__:
            module.forward = MethodType(_linear_forward, module)  # type: ignore[method-assign]
    for module in model.modules():
        changed["lora"] += _is_lora(module) and _replace(module, _lora_forward, cast(nn.Module, module.base_layer))
        changed["norm"] += _is_frozen_norm(module) and _replace(module, _norm_forward, None)
    for module in model.modules():  # after the gate's projections have theirs
        if _is_gated_mlp(module):
            layer = cast(nn.Module, getattr(module.gate_proj, "base_layer", module.gate_proj))
            changed["gated_mlp"] += _replace(module, _gated_forward, layer, _GATED_PARTS)
    for module in training:
        module.training = True
    return changed


def _is_lora(module: nn.Module) -> bool:
    from peft.tuners.lora.layer import Linear as LoraLinear

    return type(module) is LoraLinear


def _replace(
    module: nn.Module, ours: Callable[[Any, Tensor], Tensor], layer: nn.Module | None, parts: Sequence[str] = ()
) -> bool:
    """Replace the module's forward by `ours` if the probe finds that both compute the same; returns whether it did.

    Args:
        layer: the linear layer that first reads the module's input; None if the module's own weight does.
    """
    present = module.__dict__.get("forward")
    if present is not None:
        return getattr(present, "__func__", None) is ours
    if layer is not None and type(layer) is not nn.Linear:
        return False
    weight = cast(Tensor, (layer or module).weight)
    replacement = MethodType(ours, module)
    if not computes_same(module, replacement, weight.shape[-1], weight.dtype, weight.device, parts):
        return False
    module.forward = replacement
    return True
