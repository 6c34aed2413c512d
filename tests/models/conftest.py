"""A flash_attn package made by hand."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch
from torch import Tensor

from prefine.models.forward import attention


def varlen_by_hand(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
) -> Tensor:
    """What flash_attn_varlen_func promises (flash-attn 2.6 and later): q (T, H, D), k and v (T', K, D).

    Causal is aligned at the bottom right; a window (left, right) lets query i of N see keys i + M - N - left up to
    i + M - N + right of M, and right is 0 where causal.
    """
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert int(cu_seqlens_q[-1]) == len(q)
    assert int(cu_seqlens_k[-1]) == len(k) == len(v)
    assert max_seqlen_q == int(cu_seqlens_q.diff().max())
    assert max_seqlen_k == int(cu_seqlens_k.diff().max())
    assert causal
    assert dropout_p == 0.0
    assert window_size == (-1, -1) or (window_size[0] >= 0 and window_size[1] == 0)
    outs = []
    ends = (cu_seqlens_q, cu_seqlens_k, cu_seqlens_k)
    pieces = (x.tensor_split(offsets[1:-1].long()) for x, offsets in zip((q, k, v), ends, strict=True))
    for queries, *shared in zip(*pieces, strict=True):
        groups = queries.shape[1] // shared[0].shape[1]
        keys, values = (x.repeat_interleave(groups, 1).transpose(0, 1) for x in shared)
        scores = queries.transpose(0, 1) @ keys.transpose(1, 2) * softmax_scale
        if softcap:
            scores = torch.tanh(scores / softcap) * softcap
        n, m = scores.shape[1:]
        distance = torch.arange(m - n, m)[:, None] - torch.arange(m)
        hidden = (distance < 0) | (distance > (window_size[0] if window_size[0] >= 0 else m))
        outs.append((torch.softmax(scores.masked_fill(hidden, -torch.inf), -1) @ values).transpose(0, 1))
    return torch.cat(outs)


@pytest.fixture
def fake_flash(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A flash_attn package that computes on the CPU what the real one documents; the kernel choice takes it."""
    package = ModuleType("flash_attn")
    package.__spec__ = ModuleSpec("flash_attn", None)
    package.flash_attn_varlen_func = varlen_by_hand  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setattr(attention, "choose_kernel", lambda *_: "flash")
    attention.flash_attention_installed.cache_clear()
    assert attention.flash_attention_installed()
    yield
    attention.flash_attention_installed.cache_clear()
