"""Chooses a model's forward path: a probe compares packed with separate sequences and tests for leaks between them."""

from __future__ import annotations

import logging
from typing import Any, cast

import torch
from torch import Tensor, nn

from prefine.data.tokens.trees import PackedBatch, TokenTree, collate, runs
from prefine.models.forward import attention
from prefine.models.forward.packed import PackedModel, standard_attention

log = logging.getLogger("prefine")

# Tolerance, as a multiple of the measured effect of rounding; root mean squares over a probe.
_ROUNDINGS = 3
# The effect of rounding shows between transformers' own two attentions, but these may agree by chance or differ in
# more. A step of one unit in every embedded number has the same effect, within this factor.
_LUCK = 4
_MOVES = 2
# Forwards of the probe whose attention calls are recorded.
_PROBE_FORWARDS = 1


def choose_path(model: PackedModel) -> str | None:
    """Give the model packed attention if the probe passes; otherwise leave it as it was, on the padded path.

    Returns the reason for the padded path, or None on the packed path.
    """
    causal = model.causal
    own = causal.config._attn_implementation
    # Some architectures choose their attention in the constructor. With another name they would only drop their mask.
    if getattr(causal, "_can_set_attn_implementation", lambda: True)():
        causal.set_attn_implementation(attention.NAME)
        reason = probe(model)
        if reason is not None:
            causal.set_attn_implementation(own)
    else:
        reason = "its layers do not use transformers' AttentionInterface"
    if reason is not None:
        take_padded_path(model)
    return reason


@torch.no_grad()
def take_padded_path(model: PackedModel) -> None:
    """Use the model's own attention on padded rows; find out whether its head can still compute chosen rows only."""
    batch = probe_batch(model.causal.get_input_embeddings().weight.shape[0], model.device)
    training = model.training
    model.eval()
    model.path.packed = False
    try:
        model.path.whole_logits = True
        theirs = model(batch)
        model.path.whole_logits = False
        apart = (model(batch) - theirs).abs().max().item()
        with model.autocast():
            logits = model.own_logits(batch)
        # Rounding of logits of this size, and of sums over the width in float32.
        width = model.causal.get_output_embeddings().weight.shape[-1]
        unit = torch.finfo(model.compute_dtype).eps + torch.finfo(torch.float32).eps * width**0.5
        model.path.whole_logits = not apart <= _ROUNDINGS * unit * logits.abs().max().item()
    except Exception:  # noqa: BLE001 (a model's own code may raise anything)
        model.path.whole_logits = True
    finally:
        model.train(training)


def probe(model: PackedModel) -> str | None:
    """Why packed rows do not work for a model with packed attention; None if they do.

    They work if the layers call the registered attention and pass it every sliding window that the model uses in its
    masks (a window is longer than the probe's sequences, so it cannot show in their numbers); if no answer depends on
    a token outside its prompt and itself; and if packed log-probabilities equal separate ones.
    """
    batch = probe_batch(model.causal.get_input_embeddings().weight.shape[0], model.device)
    training, lengths = model.training, model.lengths
    model.eval()
    try:
        # In one call, even if rotary frequencies depend on its longest sequence: one embedding's gradient shows leaks.
        model.path.packed, model.lengths = True, None
        with attention.watched() as traffic:
            ours, leaks = _packed_with_leaks(model, batch)
        # A layer that attends twice would need two slots for its keys and values.
        model.path.decodes = max(traffic.layers.values(), default=0) == _PROBE_FORWARDS
        if not traffic.calls:
            return "its layers do not call the registered attention"
        if lost := traffic.windows_asked - traffic.windows_told:
            return f"its layers do not pass their window of {lost.pop()} tokens to the attention"
        if leaks:
            return "tokens of another sequence in the row reach its log-probabilities"
        model.path.packed = False
        apart, tolerance = _apart(model, batch, ours)
        log.debug("packed and separate forwards differ by %.2g (at most %.2g)", apart, tolerance)
        return None if apart <= tolerance else f"packed and separate log-probabilities differ by {apart:.2g}"
    except Exception as error:  # noqa: BLE001 (a model's own code may raise anything)
        return f"its forward refused the packed row ({type(error).__name__}: {error})".splitlines()[0]
    finally:
        model.path.packed, model.lengths = True, lengths
        model.train(training)


def probe_batch(vocabulary: int, device: torch.device) -> PackedBatch:
    """Two small pairs of random tokens with a common prefix."""
    generator = torch.Generator().manual_seed(0)

    def tokens(n: int) -> list[int]:
        return torch.randint(vocabulary // 8, vocabulary, (n,), generator=generator).tolist()

    common = tokens(9)
    first = TokenTree(common + tokens(7), (tokens(4), tokens(3)), (None, None))
    second = TokenTree(common + tokens(5), (tokens(2), tokens(6)), (None, None))
    return collate([first, second]).to(device)


@torch.enable_grad()
def _packed_with_leaks(model: PackedModel, batch: PackedBatch) -> tuple[Tensor, bool]:
    """Packed log-probabilities, and whether an answer's depend on a token outside its prompt and itself.

    The gradient with respect to the embedded tokens shows what an answer depends on: it is exactly 0 where attention is
    masked, and not 0, in any dtype, if a sequence leaks (by attention, a convolution, a recurrent state).
    """
    embedded: list[Tensor] = []

    def as_leaf(_module: nn.Module, _inputs: Any, out: Tensor) -> Tensor:
        embedded.append(out.detach().requires_grad_())
        return embedded[-1].clone()  # some models scale it in place

    hook = model.causal.get_input_embeddings().register_forward_hook(as_leaf)
    try:
        ours = model(batch)
    finally:
        hook.remove()
    leaks = False
    _common, *spans = runs(batch.segments)
    for sequence in (1, 2):  # one after its sibling, one after another tree; both before others
        own, context = spans[sequence]
        answer = ours[model.head.owners(batch) == sequence].sum()
        (gradient,) = torch.autograd.grad(answer, embedded[0], retain_graph=True)
        for seen in (own, *context):
            gradient[0, seen.start : seen.stop] = 0
        leaks |= bool(gradient.any())
    return ours.detach(), leaks


@torch.no_grad()
def _apart(model: PackedModel, batch: PackedBatch, ours: Tensor) -> tuple[float, float]:
    """The difference between packed and separate outputs, and its tolerance: root mean squares.

    The tolerance is measured: it depends on the model's depth, width and dtype.
    """
    with standard_attention(model):
        theirs = model(batch)
        moved = rounding(model, batch, theirs)
    with standard_attention(model, "eager"):
        eager = _size(model(batch) - theirs)
    own = min(max(eager, moved / _LUCK), moved * _LUCK)
    return _size(ours - theirs), _ROUNDINGS * (own + torch.finfo(torch.float32).eps * _size(theirs))


@torch.no_grad()
def rounding(model: PackedModel, batch: PackedBatch, outputs: Tensor) -> float:
    """How far rounding moves a batch's `outputs`: their root mean square change, over two draws of signs, when every
    embedded number moves by one unit of rounding."""
    unit = torch.finfo(model.compute_dtype).eps
    return _size(torch.cat([_moved(model, batch, unit, seed) - outputs for seed in range(_MOVES)]))


def _size(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


def _moved(model: PackedModel, batch: PackedBatch, unit: float, seed: int) -> Tensor:
    """Outputs where every embedded number is one unit of rounding larger or smaller."""
    generator = torch.Generator().manual_seed(seed)

    def step(_module: nn.Module, _inputs: Any, out: Tensor) -> Tensor:
        signs = torch.randint(2, out.shape, generator=generator).mul_(2).sub_(1).to(out.device, out.dtype)
        return out * (1 + unit * signs)

    hook = model.causal.get_input_embeddings().register_forward_hook(step)
    try:
        return cast(Tensor, model(batch))
    finally:
        hook.remove()
