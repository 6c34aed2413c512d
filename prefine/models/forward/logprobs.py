"""Log-probabilities of chosen tokens from hidden states, without a full matrix of logits in memory.

Rows go through the output head in chunks; reductions are in fp32. If the head is frozen and linear, the gradient with
respect to the hidden state, W[target] - softmax(W h) W, is computed in the forward pass, so no logits are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Bytes of fp32 logits in one chunk: as many as fit a processor's last-level cache, or keep a GPU busy.
_CHUNK_BYTES = {"cpu": 48 << 20}
_CHUNK_BYTES_ELSEWHERE = 512 << 20


@dataclass(frozen=True, slots=True)
class Head:
    """An output head, and the transformations that its model applies to the logits.

    Attributes:
        module: hidden (N, H) -> logits (N, V).
        scale: logits are multiplied by this (Granite, Cohere).
        softcap: then softcap * tanh(logits / softcap), if not None (Gemma 2).
        sharpness: then multiplied by this, 1 / temperature of the sampling policy.
    """

    module: nn.Module
    scale: float = 1.0
    softcap: float | None = None
    sharpness: float = 1.0

    @property
    def plain_and_frozen(self) -> bool:
        """Whether the gradient of the forward pass is valid: a frozen scaled linear map without bias or softcap."""
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


class _FrozenHead(torch.autograd.Function):
    """Log-probabilities of targets and, if requested, entropies; their gradients are computed in the forward pass.

    With logits l = s W h, p = softmax(l) and H the entropy: d log p(t) / dh = s (e_t - p) W and
    dH / dh = -s (p (log p + H)) W. The log-probability's bits depend on neither gradients nor entropies.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, scale: float, with_entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        rows = rows_per_chunk(weight.shape[0], hidden.device.type)
        learns = ctx.needs_input_grad[0]
        logprobs = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        entropy = torch.empty_like(logprobs) if with_entropy else None
        grad = torch.empty_like(hidden) if learns else None
        entropy_grad = torch.empty_like(hidden) if learns and with_entropy else None
        for i in range(0, len(hidden), rows):
            part = slice(i, i + rows)
            target = targets[part, None]
            logits = hidden[part] @ weight.T
            # In place: fewer passes over memory, and one matrix less if the logits are fp32 already.
            chosen, shifted, exponentials = _exponentials(logits, target, scale, in_place=True, keep=with_entropy)
            total = exponentials.sum(-1, keepdim=True)
            logprobs[part] = (chosen - total.log())[:, 0]
            if entropy is not None:
                mean = _mean_of(shifted, exponentials, total)
                entropy[part] = (total.log() - mean)[:, 0]
                if entropy_grad is not None:  # log p + H = shifted - mean
                    weighted = shifted.sub_(mean).mul_(exponentials)
                    entropy_grad[part] = (weighted.to(weight.dtype) @ weight).div_(-total)
            if grad is not None:
                # p - e_t in fp32: in bf16, the difference would be rounding noise for p near 1.
                difference = exponentials.scatter_add_(-1, target, -total)
                grad[part] = (difference.to(weight.dtype) @ weight).div_(-total)
        ctx.save_for_backward(grad, entropy_grad)
        ctx.scale = scale
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor, entropy_out: Tensor | None) -> tuple[Tensor | None, ...]:
        grad, entropy_grad = ctx.saved_tensors
        found = grad * (grad_out * ctx.scale)[:, None]
        if entropy_grad is not None and entropy_out is not None:
            found += entropy_grad * (entropy_out * ctx.scale)[:, None]
        return found.to(grad.dtype), None, None, None, None


def adjusted(logits: Tensor, head: Head) -> Tensor:
    """The head's output after scale, soft cap and sharpness, in fp32."""
    logits = logits.float() * head.scale
    logits = logits if head.softcap is None else torch.tanh(logits / head.softcap) * head.softcap
    return logits if head.sharpness == 1.0 else logits * head.sharpness


def logprobs_of_logits(logits: Tensor, targets: Tensor) -> Tensor:
    """log softmax(logits)[target] in fp32: logits (..., V), targets (...) int64 -> (...)."""
    return torch.log_softmax(logits.float(), -1).gather(-1, targets[..., None])[..., 0]


def selected_logprobs(hidden: Tensor, targets: Tensor, head: Head) -> Tensor:
    """log p(target | hidden) of each row: hidden (R, H), targets (R,) int64 -> (R,) fp32, with gradient."""
    return logprobs_and_entropy(hidden, targets, head, with_entropy=False)[0]


def logprobs_and_entropy(
    hidden: Tensor, targets: Tensor, head: Head, *, with_entropy: bool = True
) -> tuple[Tensor, Tensor | None]:
    """As selected_logprobs, and the entropy of each row's whole distribution, nats: (R,) fp32 each, with gradient.

    The log-probabilities are bit-identical with and without entropies, and with and without gradients.
    """
    if head.plain_and_frozen:
        weight = cast(nn.Linear, head.module).weight
        scale = head.scale * head.sharpness
        found = _FrozenHead.apply(hidden.to(weight.dtype), weight, targets, scale, with_entropy)  # type: ignore[no-untyped-call]
        return cast("tuple[Tensor, Tensor | None]", found)
    logprobs, entropies = zip(*_in_chunks(hidden, targets, head, with_entropy), strict=True)
    return torch.cat(logprobs), torch.cat(entropies) if with_entropy else None


def _exponentials(
    logits: Tensor, target: Tensor, scale: float, *, in_place: bool, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The terms of log softmax(scale * logits), in fp32, with the largest logit subtracted.

    Args:
        logits: (R, V); with `in_place`, fp32 logits are overwritten.
        target: (R, 1) int64.
        keep: whether the shifted logits are still needed; otherwise they and their exponentials may share memory.

    Returns: the target's shifted logit (R, 1), all of them (R, V), and their exponentials (R, V).
    """
    top = logits.detach().amax(-1, keepdim=True).float()
    chosen = (logits.gather(-1, target) - top) * scale
    shifted = logits.sub_(top) if in_place and logits.dtype == torch.float32 else torch.sub(logits, top)
    if scale != 1.0:
        shifted = shifted.mul_(scale) if in_place else shifted * scale
    return chosen, shifted, shifted.exp_() if in_place and not keep else shifted.exp()


def _mean_of(shifted: Tensor, exponentials: Tensor, total: Tensor) -> Tensor:
    """(R, 1): the mean of the shifted logits under the softmax, in fp32 (autocast would take a dot product in bf16)."""
    return (exponentials * shifted).sum(-1, keepdim=True) / total


def _of_chunk(hidden: Tensor, targets: Tensor, head: Head, with_entropy: bool) -> tuple[Tensor, Tensor | None]:
    logits, scale = head.module(hidden), head.scale * head.sharpness
    if head.softcap is not None:
        logits, scale = adjusted(logits, head), 1.0
    chosen, shifted, exponentials = _exponentials(logits, targets[:, None], scale, in_place=False, keep=True)
    total = exponentials.sum(-1, keepdim=True)
    entropy = (total.log() - _mean_of(shifted, exponentials, total))[:, 0] if with_entropy else None
    return (chosen - total.log())[:, 0], entropy


def _in_chunks(hidden: Tensor, targets: Tensor, head: Head, with_entropy: bool) -> list[tuple[Tensor, Tensor | None]]:
    """Chunk by chunk; logits are discarded and recomputed in the backward pass."""
    vocabulary = getattr(head.module, "out_features", 65_536)
    rows = rows_per_chunk(vocabulary, hidden.device.type)
    chunks = zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True)
    if not torch.is_grad_enabled():
        return [_of_chunk(h, t, head, with_entropy) for h, t in chunks]
    return [checkpoint(_of_chunk, h, t, head, with_entropy, use_reentrant=False) for h, t in chunks]
