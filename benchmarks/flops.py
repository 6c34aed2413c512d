"""Floating-point operations that a LoRA step on SmolLM2-135M needs, counted from the shapes.

A product of (m, k) and (k, n) takes 2 m k n. Frozen weights need the forward product and the gradient of their input,
not that of the weight; LoRA's matrices need all three; the frozen head runs on the supervised positions alone.
Attention is counted as causal (half of the square), forward 2 products and backward 4. What an implementation computes
beyond this (padding, repeated prompts, masked halves, recomputation) does not count.
"""

from __future__ import annotations

from collections.abc import Sequence

from prefine.data.tokens.trees import Segment, runs

LAYERS, HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD, VOCABULARY = 30, 576, 1536, 9, 3, 64, 49_152
RANK = 16
_LINEAR = [
    (HIDDEN, HEADS * HEAD),
    (HIDDEN, KV_HEADS * HEAD),
    (HIDDEN, KV_HEADS * HEAD),
    (HEADS * HEAD, HIDDEN),
    (HIDDEN, INTERMEDIATE),
    (HIDDEN, INTERMEDIATE),
    (INTERMEDIATE, HIDDEN),
]


def step_flops(segments: Sequence[Segment], supervised_tokens: int) -> float:
    """FLOPs of one forward and backward pass over trees with `supervised_tokens` targets in all."""
    tokens = sum(segment.prompt + sum(segment.answers) for segment in segments)
    frozen = sum(i * o for i, o in _LINEAR)
    adapters = sum(RANK * (i + o) for i, o in _LINEAR)
    dense = LAYERS * tokens * (2 * 2 * frozen + 3 * 2 * adapters)
    head = 2 * 2 * supervised_tokens * HIDDEN * VOCABULARY
    seen = sum(_keys_seen(len(own), sum(map(len, context))) for own, context in runs(segments))
    attention = LAYERS * (2 + 4) * 2 * seen * HEADS * HEAD
    return float(dense + head + attention)


def _keys_seen(rows: int, before: int) -> float:
    """Pairs of query and visible key: each of `rows` queries sees `before` keys, itself and its own forerunners."""
    return rows * before + rows * (rows + 1) / 2
