"""Checks whether another forward of a module computes the same as its own: outputs and gradients, up to rounding.

A replacement is used only if they agree. A module that cannot be compared (another signature, any exception) is kept.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

# Two ways to compute a number differ by a few roundings.
_ROUNDINGS = 3
# Rows of several magnitudes: activation functions that agree on large numbers differ on small ones.
_ROW_SIZES = ((1.0, 0.5), (0.25, 0.125))

Forward = Callable[[Tensor], Tensor]


def takes_one_tensor(module: nn.Module) -> bool:
    """Whether the module is called with rows only: no gate, mask or option."""
    try:
        parameters = list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return len(parameters) == 1 and parameters[0].kind in positional


def computes_same(
    module: nn.Module, ours: Forward, width: int, dtype: torch.dtype, device: torch.device, parts: Sequence[str] = ()
) -> bool:
    """Whether `ours` gives the module's output and gradients on random rows.

    The tolerance is measured: how far the module's results move when its input moves by one unit of rounding, plus the
    error of sums of `width` terms in float32. Training or eval mode of the module and its children must not matter,
    except for the named `parts`, which must be in eval mode. No global random number is drawn; no gradient is left.

    Args:
        module: the module; its own forward is the current `module.forward`.
        ours: the replacement, called with the same rows.
        width: last dimension of its input; rows are (2, 2, width).
        dtype: dtype of its input.
        device: device of its input.
        parts: children that the replacement calls unchanged.
    """
    generator = torch.Generator().manual_seed(0)
    x, step = (torch.randn(2, 2, width, generator=generator).to(device, dtype) for _ in range(2))
    x *= torch.tensor(_ROW_SIZES, device=device)[..., None]
    moved = x * (1 + torch.finfo(dtype).eps * step.sign())
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.enable_grad():
            own = _results(module, module.forward, x)
            nearby = _results(module, module.forward, moved)
            replaced = _results(module, ours, x)
            with _in_training(module, parts):
                training = _results(module, module.forward, x)
    except Exception:  # noqa: BLE001 (other kinds of modules may raise anything)
        return False
    rounding = torch.finfo(dtype).eps / 2 + torch.finfo(torch.float32).eps * width**0.5 / 2
    return all(
        _agree(a, b, c, rounding) and _agree(a, d, c, rounding)
        for a, b, c, d in zip(own, replaced, nearby, training, strict=True)
    )


def _results(module: nn.Module, forward: Forward, x: Tensor) -> list[Tensor | None]:
    """The output and its input's gradient as rows, and each parameter's gradient as one row, in float32.

    None where there is no gradient.
    """
    generator = torch.Generator().manual_seed(1)
    leaf = x.clone().requires_grad_()
    out = forward(leaf)
    weights = torch.randn(*out.shape, generator=generator).to(out.device, out.dtype)
    learning = [weight for weight in module.parameters() if weight.requires_grad]
    of_input, *of_weights = torch.autograd.grad(out, [leaf, *learning], weights, allow_unused=True)
    found = (out, of_input, *(None if each is None else each.flatten() for each in of_weights))
    return [None if each is None else each.detach().float() for each in found]


def _agree(own: Tensor | None, other: Tensor | None, nearby: Tensor | None, rounding: float) -> bool:
    """Whether each row of `other` is as near to `own` as `nearby`, its value under rounding, is."""
    if own is None or other is None or nearby is None:
        return own is other
    if own.shape != other.shape:
        return False
    tolerance = _ROUNDINGS * ((own - nearby).norm(dim=-1) + rounding * own.norm(dim=-1))
    return bool(((own - other).norm(dim=-1) <= tolerance).all())


@contextmanager
def _in_training(module: nn.Module, parts: Sequence[str]) -> Iterator[None]:
    """Inside, the module and its children are in training mode, except the named parts."""
    kept: list[Any] = [module, *(child for name, child in module.named_children() if name not in parts)]
    before = [each.training for each in kept]
    for each in kept:
        each.training = True
    try:
        yield
    finally:
        for each, mode in zip(kept, before, strict=True):
            each.training = mode
