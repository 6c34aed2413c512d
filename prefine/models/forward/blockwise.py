"""Packed attention as matrix products, block after block: the kernel of CPU and MPS, for any dtype and with dropout.

A block is a range of queries and the keys that they see. Blocks of one row share a backward pass, so that gradients of
keys are added in place: autograd would allocate a row of zeros for every slice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prefine.data.tokens.trees import Segment, runs

# Above this many scores a block's probabilities are recomputed in the backward pass instead of kept, so that
# memory grows linearly with tokens.
KEEP_PROBABILITIES_UP_TO = 1 << 21
# Rows of queries in one block. Causal blocks skip the keys to their right, so smaller blocks waste less work on
# long sequences; larger ones make better matrix products.
BLOCK_ROWS = 512


@dataclass(frozen=True, slots=True)
class ScoreRule:
    """How scores are computed: scale, sliding window (tokens, or None), soft cap of the scores, dropout rate."""

    scale: float
    window: int | None
    softcap: float | None
    dropout: float


@dataclass(frozen=True, slots=True)
class Block:
    """Queries and the keys they see, as ranges of the row.

    Attributes:
        rows: the queries.
        keys: the keys, at contiguous positions; the last one is the last query's own.
    """

    rows: range
    keys: tuple[range, ...]


@lru_cache(maxsize=64)  # a microbatch's layout is the same in every layer and in the backward pass
def _blocks(segments: tuple[Segment, ...], window: int | None, rows: int) -> tuple[Block, ...]:
    return tuple(_each_block(segments, window, rows))


def _each_block(segments: tuple[Segment, ...], window: int | None, rows: int) -> Iterator[Block]:
    for own, context in runs(segments):
        before = sum(map(len, context))
        for first in range(0, len(own), rows):
            queries = own[first : first + rows]
            begin = 0 if window is None else max(0, before + first - window + 1)
            yield Block(queries, _cut((*context, own), begin, before + first + len(queries)))


def _cut(ranges: Sequence[range], begin: int, end: int) -> tuple[range, ...]:
    """Places `begin` to `end` of ranges laid end to end; neighbours in the row become one range."""
    found: list[range] = []
    for each in ranges:
        part = each[max(0, begin) : max(0, end)]
        if part and found and found[-1].stop == part.start:
            found[-1] = range(found[-1].start, part.stop)
        elif part:
            found.append(part)
        begin, end = begin - len(each), end - len(each)
    return tuple(found)


def _taken(x: Tensor, ranges: Sequence[range]) -> Tensor:
    """x (K, T, D) at the ranges of T; a view where there is one range."""
    parts = [x[:, each.start : each.stop] for each in ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _add(total: Tensor, x: Tensor, ranges: Sequence[range]) -> None:
    """The reverse of `_taken`: add x to the ranges of `total`."""
    for each, part in zip(ranges, torch.split(x, list(map(len, ranges)), 1), strict=True):
        total[:, each.start : each.stop] += part


def causal_bias(rows: int, keys: int, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(rows, keys): 0 where a query attends, -inf elsewhere; queries are the last `rows` of `keys` positions."""
    distance = torch.arange(keys - rows, keys, device=device)[:, None] - torch.arange(keys, device=device)
    allowed = distance >= 0
    if window is not None:
        allowed &= distance < window
    return torch.zeros(rows, keys, dtype=dtype, device=device).masked_fill_(~allowed, float("-inf"))


# A microbatch's shapes are the same in every layer; more entries would only hold memory.
KNOWN_BIASES = 64
_known_bias = lru_cache(maxsize=KNOWN_BIASES)(causal_bias)


def _bias(block: Block, rule: ScoreRule, like: Tensor) -> Tensor:
    return _known_bias(len(block.rows), sum(map(len, block.keys)), rule.window, like.dtype, like.device)


class _CausalBlocks(torch.autograd.Function):
    """softmax(scale * q k^T + bias) v for all blocks of a row, grouped-query heads without copying keys or values.

    Shapes: q (K, G, T, D), k and v (K, T, D); out like q. K key-value heads of G query heads each.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, blocks: tuple[Block, ...], rule: ScoreRule) -> Tensor:
        heads, groups, tokens, _ = q.shape
        out = v.new_empty(tokens, heads, groups, v.shape[-1]).permute(
            1, 2, 0, 3
        )  # in the layer's memory layout: tokens first
        kept: list[Tensor | None] = []
        for block in blocks:
            rows = slice(block.rows.start, block.rows.stop)
            p = _probabilities(q[:, :, rows], _taken(k, block.keys), _bias(block, rule, q), rule.scale)
            out[:, :, rows] = torch.bmm(p, _taken(v, block.keys)).view(heads, groups, len(block.rows), -1)
            kept.append(p if p.numel() <= KEEP_PROBABILITIES_UP_TO else None)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.blocks, ctx.rule = blocks, rule
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, *kept = ctx.saved_tensors
        heads, scale = len(k), ctx.rule.scale
        grad_q = torch.empty_like(q)
        # Many sequences add gradients to a shared prefix: in fp32, as sums in bf16 would lose small terms.
        wide = torch.promote_types(k.dtype, torch.float32)
        grad_k, grad_v = torch.zeros_like(k, dtype=wide), torch.zeros_like(v, dtype=wide)
        for block, known in zip(ctx.blocks, kept, strict=True):
            rows = slice(block.rows.start, block.rows.stop)
            keys = _taken(k, block.keys)
            p = _probabilities(q[:, :, rows], keys, _bias(block, ctx.rule, q), scale) if known is None else known
            own_grad = grad[:, :, rows].reshape(heads, -1, grad.shape[-1])
            grad_p = torch.bmm(own_grad, _taken(v, block.keys).transpose(1, 2))
            grad_scores = torch._softmax_backward_data(grad_p, p, -1, p.dtype).mul_(scale)
            grad_q[:, :, rows] = torch.bmm(grad_scores, keys).view(heads, -1, len(block.rows), q.shape[-1])
            _add(grad_k, torch.bmm(grad_scores.transpose(1, 2), _stacked(q[:, :, rows])), block.keys)
            _add(grad_v, torch.bmm(p.transpose(1, 2), own_grad), block.keys)
        return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype), None, None


def _stacked(q: Tensor) -> Tensor:
    """(K, G, N, D) -> (K, G N, D): the query heads of one key-value head are rows of one product."""
    return q.reshape(q.shape[0], -1, q.shape[-1])


def _probabilities(q: Tensor, k: Tensor, bias: Tensor, scale: float) -> Tensor:
    scores = torch.bmm(_stacked(q), k.transpose(1, 2)).mul_(scale)
    scores.view(*q.shape[:3], -1).add_(bias)
    return torch.softmax(scores, -1)


def _plain_block(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, rule: ScoreRule) -> Tensor:
    scores = q @ k[:, None].transpose(2, 3) * rule.scale
    if rule.softcap is not None:
        scores = torch.tanh(scores / rule.softcap) * rule.softcap
    probabilities = torch.softmax(scores + bias, -1, dtype=torch.float32).to(q.dtype)
    return F.dropout(probabilities, rule.dropout) @ v[:, None]


def blockwise(q: Tensor, k: Tensor, v: Tensor, segments: Sequence[Segment], rule: ScoreRule) -> Tensor:
    """Attention within the segments of a row: q (H, T, D), k and v (K, T, D) -> (H, T, D)."""
    grouped = q.view(k.shape[0], -1, *q.shape[1:])
    blocks = _blocks(tuple(segments), rule.window, BLOCK_ROWS)
    if rule.softcap is None and not rule.dropout:
        out: Tensor = _CausalBlocks.apply(grouped, k, v, blocks, rule)  # type: ignore[no-untyped-call]
        return out.flatten(0, 1)
    outs = [
        _plain_block(
            grouped[:, :, block.rows.start : block.rows.stop],
            _taken(k, block.keys),
            _taken(v, block.keys),
            _bias(block, rule, q),
            rule,
        )
        for block in blocks
    ]
    return torch.cat(outs, 2).flatten(0, 1)
