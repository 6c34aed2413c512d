"""Log-probabilities of chosen tokens from hidden states, without ever holding a full matrix of logits.

Rows go through the output head in chunks; reductions are in fp32. Where the head is frozen and plain, the gradient
with respect to the hidden state, W[target] - softmax(W h) W, is made in the forward pass, so no logits are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Bytes of fp32 logits in one chunk: what fits a processor's last-level cache, or keeps a GPU busy.
_CHUNK_BYTES = {"cpu": 48 << 20}
_CHUNK_BYTES_ELSEWHERE = 512 << 20


@dataclass(frozen=True, slots=True)
class Head:
    """An output head and what its model does to the logits after it.

    Attributes:
        module: hidden (N, H) -> logits (N, V).
        scale: logits are multiplied by this (Granite, Cohere).
        softcap: then squashed by softcap * tanh(logits / softcap), where not None (Gemma 2).
        sharpness: then multiplied by this, 1 / temperature: the sampling policy's own treatment.
    """

    module: nn.Module
    scale: float = 1.0
    softcap: float | None = None
    sharpness: float = 1.0

    @property
    def plain_and_frozen(self) -> bool:
        """Whether the forward-made gradient is valid: a scaled linear map, no bias, no gradient, no softcap."""
        m = self.module
        return (
            type(m) is nn.Linear
            and m.bias is None
            and not m.weight.requires_grad
            and m.weight.is_floating_point()
            and self.softcap is None
        )


def rows_per_chunk(vocabulary: int, device_type: str) -> int:
    """How many rows of logits go through the head at once; at least 16."""
    return max(16, _CHUNK_BYTES.get(device_type, _CHUNK_BYTES_ELSEWHERE) // (4 * vocabulary))


class _FrozenHeadLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, scale: float) -> Tensor:
        rows = rows_per_chunk(weight.shape[0], hidden.device.type)
        out = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for i in range(0, len(hidden), rows):
            target = targets[i : i + rows, None]
            logits = hidden[i : i + rows] @ weight.T
            top = logits.amax(-1, keepdim=True).float()
            exponentials = torch.sub(logits, top)
            exponentials = (exponentials if scale == 1.0 else exponentials.mul_(scale)).exp_()
            total = exponentials.sum(-1, keepdim=True)
            out[i : i + rows] = ((logits.gather(1, target) - top) * scale - total.log())[:, 0]
            if grad is not None:
                expected = logits.copy_(exponentials) @ weight  # softmax-weighted mean of W's rows, times total
                grad[i : i + rows] = weight[target[:, 0]] - expected / total
        ctx.save_for_backward(grad)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, None, None, None]:
        (grad,) = ctx.saved_tensors
        return (grad * (grad_out * ctx.scale)[:, None]).to(grad.dtype), None, None, None


def _head_logprobs(hidden: Tensor, targets: Tensor, head: Head) -> Tensor:
    return logprobs_of_logits(adjusted(head.module(hidden), head), targets)


def adjusted(logits: Tensor, head: Head) -> Tensor:
    """What is done to the head's output, in fp32."""
    logits = logits.float() * head.scale
    logits = logits if head.softcap is None else torch.tanh(logits / head.softcap) * head.softcap
    return logits if head.sharpness == 1.0 else logits * head.sharpness


def logprobs_of_logits(logits: Tensor, targets: Tensor) -> Tensor:
    """log softmax(logits)[target] in fp32: logits (..., V), targets (...) int64 -> (...)."""
    return torch.log_softmax(logits.float(), -1).gather(-1, targets[..., None])[..., 0]


def selected_logprobs(hidden: Tensor, targets: Tensor, head: Head) -> Tensor:
    """log p(target | hidden) for each row: hidden (R, H), targets (R,) int64 -> (R,) fp32, with gradient."""
    if head.plain_and_frozen:
        weight = cast(nn.Linear, head.module).weight
        scale = head.scale * head.sharpness
        out: Tensor = _FrozenHeadLogprobs.apply(hidden.to(weight.dtype), weight, targets, scale)  # type: ignore[no-untyped-call]
        return out
    return torch.cat(_in_chunks(_head_logprobs, hidden, targets, head))


def logprobs_and_entropy(hidden: Tensor, targets: Tensor, head: Head) -> tuple[Tensor, Tensor]:
    """As selected_logprobs, and the entropy of each row's whole distribution, nats: (R,) fp32 each, with gradient."""
    logprobs, entropies = zip(*_in_chunks(_head_logprobs_and_entropy, hidden, targets, head), strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


def _head_logprobs_and_entropy(hidden: Tensor, targets: Tensor, head: Head) -> tuple[Tensor, Tensor]:
    every = torch.log_softmax(adjusted(head.module(hidden), head), -1)
    return every.gather(-1, targets[:, None])[:, 0], -(every.exp() * every).sum(-1)


def _in_chunks(compute: Callable[..., Any], hidden: Tensor, targets: Tensor, head: Head) -> list[Any]:
    """`compute` chunk by chunk; its logits are thrown away and made again in the backward pass."""
    vocabulary = getattr(head.module, "out_features", 65_536)
    rows = rows_per_chunk(vocabulary, hidden.device.type)
    chunks = zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True)
    if not torch.is_grad_enabled():
        return [compute(h, t, head) for h, t in chunks]
    return [checkpoint(compute, h, t, head, use_reentrant=False) for h, t in chunks]
