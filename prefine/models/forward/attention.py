"""Packed, prompt-sharing attention, registered with transformers under the name "prefine".

transformers passes our keyword argument `segments` (see data/tokens/trees.py) down to the registered function. Every
answer's queries are the last rows of a run of keys with contiguous positions (prompt, then the answer itself), so each
attention call here is one causal block: `rows` queries over `keys` keys, aligned at the bottom right.

CPU and MPS compute block after block with two matrix products (models/forward/blockwise.py); on AVX512-BF16 this took a
third of scaled_dot_product_attention's time (benchmarks/). CUDA uses FlashAttention's variable-length kernel if it is
installed, otherwise FlexAttention with a block mask.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor

from prefine.data.tokens.trees import Segment, runs, token_offsets
from prefine.models.forward.blockwise import ScoreRule, blockwise

NAME = "prefine"


@lru_cache(maxsize=4)
def _varlen_plan(segments: tuple[Segment, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor, int, int]:
    """Key index (keys with each run's context repeated), query and key offsets (int32), longest query and key run."""
    queries, keys, index = [], [], []
    for own, context in runs(segments):
        queries.append(len(own))
        keys.append(sum(map(len, context)) + len(own))
        index += [*chain(*context), *own]
    offsets = (torch.tensor(token_offsets(lengths), dtype=torch.int32) for lengths in (queries, keys))
    query_offsets, key_offsets = (each.to(device) for each in offsets)
    return torch.tensor(index, device=device), query_offsets, key_offsets, max(queries), max(keys)


def _flash(q: Tensor, k: Tensor, v: Tensor, segments: Sequence[Segment], rule: ScoreRule) -> Tensor:
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
    """A FlexAttention block mask: a query sees no later tokens, in the common prefix, its prompt and its answer."""
    from torch.nn.attention.flex_attention import create_block_mask

    tree: list[int] = []
    answer: list[int] = []
    position: list[int] = []
    for number, segment in enumerate(segments):
        end = segment.shared + segment.prompt
        tree += [number] * (segment.prompt + sum(segment.answers))
        answer += [0] * segment.prompt
        position += range(segment.shared, end)
        for which, length in enumerate(segment.answers, start=1):
            answer += [which] * length
            position += range(end, end + length)
    shared = max((segment.shared for segment in segments), default=0)
    trees, answers, positions = (torch.tensor(x, device=device) for x in (tree, answer, position))

    def allowed(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        distance = positions[query] - positions[key]
        near = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
        own = (answers[key] == 0) | (answers[key] == answers[query])
        return near & own & ((trees[key] == trees[query]) | (key < shared))

    return create_block_mask(allowed, None, None, len(tree), len(tree), device=str(device))


@lru_cache(maxsize=1)
def _compiled_flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def _flex(q: Tensor, k: Tensor, v: Tensor, segments: Sequence[Segment], rule: ScoreRule) -> Tensor:
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


KERNELS: dict[str, Callable[..., Tensor]] = {"flash": _flash, "flex": _flex, "blockwise": blockwise}


@lru_cache(maxsize=1)
def flash_attention_installed() -> bool:
    """Whether the flash-attn package can be imported (found, not loaded)."""
    return importlib.util.find_spec("flash_attn") is not None


@dataclass(slots=True)
class Traffic:
    """Attention calls recorded while the probe runs a model.

    Attributes:
        calls: number of calls of the registered attention.
        layers: calls per layer, by identity.
        windows_asked: sliding windows and chunk sizes that the model asked of its masks.
        windows_told: those that its layers passed to the attention, which gets no mask.
    """

    calls: int = 0
    layers: Counter[int] = field(default_factory=Counter)
    windows_asked: set[int] = field(default_factory=set)
    windows_told: set[int] = field(default_factory=set)


_watched: list[Traffic] = []


@contextmanager
def watched() -> Iterator[Traffic]:
    """Inside, record the calls of the registered attention."""
    traffic = Traffic()
    _watched.append(traffic)
    try:
        yield traffic
    finally:
        _watched.remove(traffic)


class CachedRow(ABC):
    """A row of tokens that also attends to cached ones (generation/slot_cache.py); used in place of segments."""

    @abstractmethod
    def attend(self, layer: torch.nn.Module, q: Tensor, k: Tensor, v: Tensor, rule: ScoreRule) -> Tensor:
        """One layer's attention: q (H, T, D), k and v (K, T, D) -> (H, T, D)."""


def packed_kernel(q: Tensor, k: Tensor, v: Tensor, segments: Sequence[Segment], rule: ScoreRule) -> Tensor:
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
    """Called by transformers in each layer. query (1, H, T, D), key and value (1, K, T, D) -> (1, T, H, D).

    Raises:
        ValueError: the model uses an option that this attention does not support, or does not pass `segments`. The
            probe at load then chooses the padded path.
    """
    for traffic in _watched:
        traffic.calls += 1
        traffic.layers[id(module)] += 1
        if sliding_window is not None:
            traffic.windows_told.add(sliding_window)
    if segments is None:
        raise ValueError("its layers do not pass segments to the attention")
    extra = sorted(name for name in ("s_aux", "sinks", "position_bias") if unsupported.get(name) is not None)
    if attention_mask is not None:
        extra.append("attention_mask")
    if extra:
        raise ValueError(f"packed attention does not support {', '.join(extra)}")
    # For some models autocast leaves rotated queries in fp32 and values in bf16; the products need one type.
    dtype = value.dtype
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    rule = ScoreRule(scale, sliding_window, softcap, dropout if module.training else 0.0)
    q, k, v = query[0].to(dtype), key[0].to(dtype), value[0]
    if isinstance(segments, CachedRow):
        out = segments.attend(module, q, k, v, rule)
    else:
        out = packed_kernel(q, k, v, segments, rule)
    return out.transpose(0, 1)[None].contiguous(), None


def _no_mask(*_: Any, local_size: int | None = None, **__: Any) -> None:
    """No mask, as segments define what each token sees. Only the window argument is recorded, see `Traffic`."""
    for traffic in _watched:
        if local_size is not None:
            traffic.windows_asked.add(local_size)


def register() -> None:
    """Register `attn_implementation="prefine"` with transformers; calling it again changes nothing."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, _no_mask)
