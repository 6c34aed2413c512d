"""Packed, prompt-sharing attention, registered with transformers under the name "prefine".

transformers hands our keyword argument `segments` (see data/batch.py) down to the registered function. Every answer's
queries are the last rows of a run of keys with contiguous positions (prompt, then the answer itself), so each
attention call here is one causal block: `rows` queries over `keys` keys, aligned at the bottom right.

CPU and MPS run block after block with two matrix products; measured on AVX512-BF16 this takes a third of
scaled_dot_product_attention's time (benchmarks/). CUDA uses FlashAttention's variable-length kernel where it is
installed, else FlexAttention with a block mask.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from prefine.data.batch import Segment, token_offsets

NAME = "prefine"
# Above this many scores a block's probabilities are computed again in the backward pass instead of kept, so that
# memory grows linearly with tokens.
_KEEP_PROBABILITIES_UP_TO = 1 << 21
# Rows of queries in one block. Causal blocks skip the keys to their right, so smaller blocks waste less work on
# long sequences; larger ones make better matrix products.
_BLOCK_ROWS = 512


class _CausalBlock(torch.autograd.Function):
    """softmax(scale * q k^T + bias) v for one block, grouped-query heads without copying keys or values.

    Shapes: q (K, G, N, D), k and v (K, M, D), bias (N, M) with 0 or -inf; out like q. K key-value heads of G query
    heads each, N queries, M keys.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
        probabilities = _probabilities(q, k, bias, scale)
        out = torch.bmm(probabilities, v).view_as(q)
        keep = probabilities.numel() <= _KEEP_PROBABILITIES_UP_TO
        ctx.save_for_backward(q, k, v, bias, probabilities if keep else None)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, bias, kept = ctx.saved_tensors
        p = _probabilities(q, k, bias, ctx.scale) if kept is None else kept
        grad = grad.reshape(q.shape[0], -1, q.shape[-1])
        rows = q.reshape(q.shape[0], -1, q.shape[-1])
        grad_p = torch.bmm(grad, v.transpose(1, 2))
        grad_scores = torch._softmax_backward_data(grad_p, p, -1, p.dtype).mul_(ctx.scale)
        grad_q = torch.bmm(grad_scores, k).view_as(q)
        grad_k = torch.bmm(grad_scores.transpose(1, 2), rows)
        grad_v = torch.bmm(p.transpose(1, 2), grad)
        return grad_q, grad_k, grad_v, None, None


def _probabilities(q: Tensor, k: Tensor, bias: Tensor, scale: float) -> Tensor:
    heads, groups, rows, width = q.shape
    scores = torch.bmm(q.reshape(heads, groups * rows, width), k.transpose(1, 2)).mul_(scale)
    scores.view(heads, groups, rows, -1).add_(bias)
    return torch.softmax(scores, -1)


@lru_cache(maxsize=64)  # a microbatch's shapes return in every layer; more would only hold memory
def _causal_bias(rows: int, keys: int, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(rows, keys): 0 where a query may look, -inf elsewhere; queries are the last `rows` of `keys` positions."""
    distance = torch.arange(keys - rows, keys, device=device)[:, None] - torch.arange(keys, device=device)
    allowed = distance >= 0
    if window is not None:
        allowed &= distance < window
    return torch.zeros(rows, keys, dtype=dtype, device=device).masked_fill_(~allowed, float("-inf"))


@dataclass(frozen=True, slots=True)
class Rule:
    """How scores are made: scale, sliding window (tokens, or None), soft cap of the scores, dropout rate."""

    scale: float
    window: int | None
    softcap: float | None
    dropout: float


def _causal(q: Tensor, k: Tensor, v: Tensor, rule: Rule) -> Tensor:
    """Causal attention of the last N of M positions: q (K, G, N, D), k and v (K, M, D) -> like q."""
    rows, keys = q.shape[2], k.shape[1]
    outs = []
    for first in range(0, rows, _BLOCK_ROWS):
        last = min(first + _BLOCK_ROWS, rows)
        end = keys - rows + last
        begin = 0 if rule.window is None else max(0, keys - rows + first - rule.window + 1)
        bias = _causal_bias(last - first, end - begin, rule.window, q.dtype, q.device)
        block = (q[:, :, first:last], k[:, begin:end], v[:, begin:end], bias)
        if rule.softcap is None and not rule.dropout:
            outs.append(_CausalBlock.apply(*block, rule.scale))  # type: ignore[no-untyped-call]
        else:
            outs.append(_plain_block(*block, rule))
    return outs[0] if len(outs) == 1 else torch.cat(outs, 2)


def _plain_block(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, rule: Rule) -> Tensor:
    scores = q @ k[:, None].transpose(2, 3) * rule.scale
    if rule.softcap is not None:
        scores = torch.tanh(scores / rule.softcap) * rule.softcap
    probabilities = torch.softmax(scores + bias, -1, dtype=torch.float32).to(q.dtype)
    return F.dropout(probabilities, rule.dropout) @ v[:, None]


def runs(segments: Sequence[Segment]) -> Iterator[tuple[range, range]]:
    """Yield (queries, prompt) as ranges over the row, one a causal run, in row order.

    A run's keys are its prompt's, then its queries' own; a tree's prompt and first answer are one run without prompt.
    """
    for segment in segments:
        shared = segment.start + segment.prompt
        end = shared + (segment.answers[0] if segment.answers else 0)
        yield range(segment.start, end), range(0)
        for length in segment.answers[1:]:
            yield range(end, end + length), range(segment.start, shared)
            end += length


def _blockwise(q: Tensor, k: Tensor, v: Tensor, segments: Sequence[Segment], rule: Rule) -> Tensor:
    """Any device: run after run. q (H, T, D), k and v (K, T, D) -> (H, T, D)."""
    heads = k.shape[0]
    grouped = q.view(heads, q.shape[0] // heads, *q.shape[1:])
    outs = []
    for own, prompt in runs(segments):
        keys, values = k[:, own.start : own.stop], v[:, own.start : own.stop]
        if prompt:
            keys = torch.cat((k[:, prompt.start : prompt.stop], keys), 1)
            values = torch.cat((v[:, prompt.start : prompt.stop], values), 1)
        outs.append(_causal(grouped[:, :, own.start : own.stop], keys, values, rule))
    return torch.cat(outs, 2).view_as(q)


@lru_cache(maxsize=4)
def _varlen_plan(segments: tuple[Segment, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor, int, int]:
    """Key index (keys with each run's prompt repeated), query and key offsets (int32), longest query and key run."""
    queries, keys, index = [], [], []
    for own, prompt in runs(segments):
        queries.append(len(own))
        keys.append(len(prompt) + len(own))
        index += [*prompt, *own]
    offsets = (torch.tensor(token_offsets(lengths), dtype=torch.int32) for lengths in (queries, keys))
    query_offsets, key_offsets = (each.to(device) for each in offsets)
    return torch.tensor(index, device=device), query_offsets, key_offsets, max(queries), max(keys)


def _flash(q: Tensor, k: Tensor, v: Tensor, segments: Sequence[Segment], rule: Rule) -> Tensor:
    """FlashAttention's variable-length kernel: causal is aligned at the bottom right, as our runs are."""
    from flash_attn import flash_attn_varlen_func

    index, query_offsets, key_offsets, longest_query, longest_key = _varlen_plan(tuple(segments), q.device)
    out: Tensor = flash_attn_varlen_func(
        q.transpose(0, 1),
        k.transpose(0, 1)[index],
        v.transpose(0, 1)[index],
        query_offsets,
        key_offsets,
        longest_query,
        longest_key,
        dropout_p=rule.dropout,
        softmax_scale=rule.scale,
        causal=True,
        window_size=(-1, -1) if rule.window is None else (rule.window - 1, 0),
        softcap=rule.softcap or 0.0,
    )
    return out.transpose(0, 1)


@lru_cache(maxsize=4)
def _flex_mask(segments: tuple[Segment, ...], window: int | None, device: torch.device) -> Any:
    """A FlexAttention block mask for trees: same tree, not later, and either a prompt key or one's own answer."""
    from torch.nn.attention.flex_attention import create_block_mask

    tree: list[int] = []
    answer: list[int] = []
    position: list[int] = []
    for number, segment in enumerate(segments):
        tree += [number] * (segment.prompt + sum(segment.answers))
        answer += [0] * segment.prompt
        position += range(segment.prompt)
        for which, length in enumerate(segment.answers, start=1):
            answer += [which] * length
            position += range(segment.prompt, segment.prompt + length)
    trees, answers, positions = (torch.tensor(x, device=device) for x in (tree, answer, position))

    def allowed(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        distance = positions[query] - positions[key]
        near = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
        own = (answers[key] == 0) | (answers[key] == answers[query])
        return near & own & (trees[key] == trees[query])

    return create_block_mask(allowed, None, None, len(tree), len(tree), device=str(device))


@lru_cache(maxsize=1)
def _compiled_flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def _flex(q: Tensor, k: Tensor, v: Tensor, segments: Sequence[Segment], rule: Rule) -> Tensor:
    """FlexAttention; compiled on CUDA only (elsewhere it is the slow reference that the tests use)."""
    from torch.nn.attention.flex_attention import flex_attention

    softcap = rule.softcap or 0.0

    def capped(score: Tensor, *_: Tensor) -> Tensor:
        return torch.tanh(score / softcap) * softcap

    attend = _compiled_flex() if q.is_cuda else cast(Callable[..., Any], flex_attention)
    out: Tensor = attend(
        q[None],
        k[None],
        v[None],
        score_mod=capped if softcap else None,
        block_mask=_flex_mask(tuple(segments), rule.window, q.device),
        scale=rule.scale,
        enable_gqa=q.shape[0] != k.shape[0],
    )
    return out[0]


def choose_kernel(device_type: str, dtype: torch.dtype, dropout: float, flash_installed: bool) -> str:
    """The kernel for a device: "flash", "flex" or "blockwise" (any device, any dtype, dropout)."""
    if device_type != "cuda":
        return "blockwise"
    if flash_installed and dtype in (torch.float16, torch.bfloat16):
        return "flash"
    return "blockwise" if dropout else "flex"


KERNELS: dict[str, Callable[..., Tensor]] = {"flash": _flash, "flex": _flex, "blockwise": _blockwise}


@lru_cache(maxsize=1)
def flash_attention_installed() -> bool:
    """Whether the flash-attn package can be imported (found, not loaded)."""
    return importlib.util.find_spec("flash_attn") is not None


@dataclass(slots=True)
class Traffic:
    """What reached this module while the probe watched.

    Attributes:
        calls: of the registered attention.
        layers: calls of each layer, by its identity.
        windows_asked: sliding windows and chunk sizes that the model asked of its masks.
        windows_told: those that its layers handed to the attention, which has no mask and so must be told.
    """

    calls: int = 0
    layers: Counter[int] = field(default_factory=Counter)
    windows_asked: set[int] = field(default_factory=set)
    windows_told: set[int] = field(default_factory=set)


_watched: list[Traffic] = []


@contextmanager
def watched() -> Iterator[Traffic]:
    """Count inside what models ask of the registered attention."""
    traffic = Traffic()
    _watched.append(traffic)
    try:
        yield traffic
    finally:
        _watched.remove(traffic)


class CachedRow(ABC):
    """A row of tokens that also attends to what is outside it; stands in the place of segments (models/slots.py)."""

    @abstractmethod
    def attend(self, layer: torch.nn.Module, q: Tensor, k: Tensor, v: Tensor, rule: Rule) -> Tensor:
        """One layer's attention: q (H, T, D), k and v (K, T, D) -> (H, T, D)."""


def packed_kernel(q: Tensor, k: Tensor, v: Tensor, segments: Sequence[Segment], rule: Rule) -> Tensor:
    """Attention within the segments of a row, by this device's kernel: q (H, T, D), k and v (K, T, D) -> (H, T, D)."""
    kernel = choose_kernel(q.device.type, v.dtype, rule.dropout, flash_attention_installed())
    return KERNELS[kernel](q, k, v, segments, rule)


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    segments: Sequence[Segment] | CachedRow | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **unsupported: Any,
) -> tuple[Tensor, None]:
    """The function transformers calls in each layer. query (1, H, T, D), key and value (1, K, T, D) -> (1, T, H, D).

    Raises:
        ValueError: where the model asks for what this attention does not know (the probe at load then chooses the
            padded path), or was called without `segments`.
    """
    for traffic in _watched:
        traffic.calls += 1
        traffic.layers[id(module)] += 1
        if sliding_window is not None:
            traffic.windows_told.add(sliding_window)
    if segments is None:
        raise ValueError("its layers do not hand segments down to the attention")
    extra = sorted(name for name in ("s_aux", "sinks", "position_bias") if unsupported.get(name) is not None)
    if attention_mask is not None:
        extra.append("attention_mask")
    if extra:
        raise ValueError(f"packed attention does not know {', '.join(extra)}")
    # Autocast leaves rotated queries in fp32 and values in bf16 for some models; one type goes into the products.
    dtype = value.dtype
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    rule = Rule(scale, sliding_window, softcap, dropout if module.training else 0.0)
    q, k, v = query[0].to(dtype), key[0].to(dtype), value[0]
    if isinstance(segments, CachedRow):
        out = segments.attend(module, q, k, v, rule)
    else:
        out = packed_kernel(q, k, v, segments, rule)
    return out.transpose(0, 1)[None].contiguous(), None


def _no_mask(*_: Any, local_size: int | None = None, **__: Any) -> None:
    """Segments say who sees whom; of a mask's arguments only a window matters, see `Traffic`."""
    for traffic in _watched:
        if local_size is not None:
            traffic.windows_asked.add(local_size)


def register() -> None:
    """Make `attn_implementation="prefine"` known to transformers; calling it again changes nothing."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, _no_mask)
