"""The one forward pass of every stage: a PackedBatch in, fp32 log-probabilities of its targets, or scores, out.

The packed path runs the model's trunk once over the row (see data/batch.py). A model that does not route its attention
through transformers' AttentionInterface takes the padded path instead: each answer a row of its own behind its own
copy of the prompt. A probe decides which, and says so.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from prefine.data.batch import PackedBatch, Segment, TokenTree, collate, runs
from prefine.models import attention
from prefine.models.attention import CachedRow
from prefine.models.logprobs import Head, logprobs_of_logits, selected_logprobs
from prefine.models.rotary import forget_lengths, length_rule

log = logging.getLogger("prefine")

# Part of the key of cached log-probabilities: raise it whenever the forward's numbers change.
FORWARD_VERSION = 4

# Two ways to compute one number may differ by so many times what rounding moves it, root mean squares over a probe.
_ROUNDINGS = 3
# What rounding moves is seen between transformers' own two attentions, but two may agree by luck, or differ in more. A
# step of one unit at every embedded number moves results by the same, within this factor.
_LUCK = 4
_MOVES = 2
# Forwards of the probe whose attention is watched.
_PROBE_FORWARDS = 1


@dataclass
class ForwardPath:
    """How a trunk is run. Models that share their weights share it, as they share the attention implementation.

    Attributes:
        packed: whether to take the packed path; `settle_path` finds out.
        whole_logits: on the padded path, let the model compute all its logits; `take_padded_path` finds out whether it
            must.
        decodes: on the packed path, whether the model can also generate token by token; the probe finds out.
    """

    packed: bool = True
    whole_logits: bool = True
    decodes: bool = True


class PackedModel(nn.Module):
    """A trunk with the language head: a causal language model (bare, or wrapped by peft) behind the packed forward.

    Args:
        model: transformers' causal LM, or a PeftModel around one.
        compute_dtype: type of the matrix products; others are autocast to it.
        path: that of another model on the same weights; a new one by default.

    Attributes:
        lengths: how rotary frequencies follow the length of a sequence; None where they do not. Sequences that would
            change each other's numbers are computed apart.

    Calling it with a PackedBatch of R targets gives their log-probabilities, (R,) fp32.
    """

    def __init__(self, model: nn.Module, compute_dtype: torch.dtype, path: ForwardPath | None = None) -> None:
        super().__init__()
        self.model = model
        self.compute_dtype = compute_dtype
        self.path = path or ForwardPath()
        self.lengths = length_rule(self.causal.config)

    @property
    def causal(self) -> Any:
        """The transformers model itself, under any adapter."""
        model = cast(Any, self.model)
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def head(self) -> Head:
        """The output head with the model's own treatment of logits."""
        config = self.causal.config.get_text_config()
        scale = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
        return Head(self.causal.get_output_embeddings(), scale, getattr(config, "final_logit_softcapping", None))

    def forward(self, batch: PackedBatch) -> Tensor:
        """Log-probabilities of the batch's targets: (R,) fp32."""
        with self.autocast():
            return self._packed(batch) if self.path.packed else self._padded(batch)

    def owners(self, batch: PackedBatch) -> Tensor:
        """(R,) int64: the answer that each number of the forward's output belongs to."""
        return batch.sequence

    def hidden(self, input_ids: Tensor, position_ids: Tensor, segments: Sequence[Segment] | CachedRow) -> Tensor:
        """(T, H) hidden states of a packed row of T tokens, both tensors (1, T) int64."""
        out = self.causal.base_model(input_ids=input_ids, position_ids=position_ids, use_cache=False, segments=segments)
        return cast(Tensor, out.last_hidden_state[0])

    def _trunk(self, batch: PackedBatch) -> Tensor:
        return self.hidden(batch.input_ids, batch.position_ids, batch.segments)

    def predicting(self, batch: PackedBatch) -> Tensor:
        """(R, H) hidden states that the targets are predicted from, on either path."""
        return self._by_length(batch, self._predicting, of_targets=True)

    def _predicting(self, batch: PackedBatch) -> Tensor:
        if self.path.packed:
            return self._trunk(batch)[batch.predict_from]
        ids, mask, row, column = unpack(batch)
        out = self.causal.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
        return cast(Tensor, out.last_hidden_state[row, column])

    def _by_length(self, batch: PackedBatch, states: Callable[[PackedBatch], Tensor], *, of_targets: bool) -> Tensor:
        """What `states` gives for a batch, a row for each target or each answer, where answers that would change each
        other's rotary frequencies are computed apart."""
        if self.lengths is None:
            return states(batch)
        forget_lengths(self.model)
        groups = self.lengths.groups(batch.whole_lengths())
        if len(groups) <= 1:
            return states(batch)
        found: list[Tensor] = []
        places: list[Tensor] = []
        for group in groups:
            part, targets = batch.part(group)
            forget_lengths(self.model)
            found.append(states(part))
            places.append(targets if of_targets else torch.tensor(group, device=targets.device))
        return torch.cat(found)[torch.argsort(torch.cat(places))]

    def _packed(self, batch: PackedBatch) -> Tensor:
        return selected_logprobs(self.predicting(batch), batch.targets, self.head())

    def _padded(self, batch: PackedBatch) -> Tensor:
        if not self.path.whole_logits:
            return selected_logprobs(self.predicting(batch), batch.targets, self.head())
        return logprobs_of_logits(self._by_length(batch, self._own_logits, of_targets=True), batch.targets)

    def _own_logits(self, batch: PackedBatch) -> Tensor:
        """(R, V) logits of the targets as the model itself makes them."""
        ids, mask, row, column = unpack(batch)
        out = self.causal(input_ids=ids, attention_mask=mask, use_cache=False)
        return cast(Tensor, out.logits[row, column])

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Casts matrix products to the compute type inside; nothing where that is fp32."""
        if self.compute_dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.compute_dtype)


class PackedScorer(PackedModel):
    """A sequence classifier with a linear score head behind the packed forward: a reward model.

    A score is read at an answer's last token, its end of turn, where the model has seen all of it. The place comes from
    lengths: padding, and a padding token that is also the end of turn, cannot move it.

    Calling it with a PackedBatch of S answers gives (S, k) fp32, a raw score of each head for each answer.
    """

    def owners(self, batch: PackedBatch) -> Tensor:
        """(S,) int64: each answer itself."""
        return torch.arange(batch.sequences, device=batch.input_ids.device)

    def _packed(self, batch: PackedBatch) -> Tensor:
        return self._scores(self._by_length(batch, self._last_packed, of_targets=False))

    def _last_packed(self, batch: PackedBatch) -> Tensor:
        return self._trunk(batch)[batch.last_tokens()]

    def _padded(self, batch: PackedBatch) -> Tensor:
        if not batch.sequences:
            return self._scores(torch.zeros(0, self.score_head.in_features, device=self.device))
        return self._scores(self._by_length(batch, self._last_padded, of_targets=False))

    def _last_padded(self, batch: PackedBatch) -> Tensor:
        ids, mask, *_ = unpack(batch)
        out = self.causal.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
        return cast(Tensor, out.last_hidden_state[torch.arange(len(ids), device=ids.device), mask.sum(1) - 1])

    def _scores(self, hidden: Tensor) -> Tensor:
        # In fp32 whatever the trunk computes in: a bf16 score has three digits, and PPO's rewards are differences.
        with torch.autocast(self.device.type, enabled=False):
            return cast(Tensor, self.score_head(hidden.float()))

    @property
    def score_head(self) -> nn.Linear:
        """Hidden states (N, H) to scores (N, k), fp32."""
        return cast(nn.Linear, self.causal.score)


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """In eval mode inside, and every part of it as it was afterwards."""
    before = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in before:
            part.training = True


def unpack(batch: PackedBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Answers as padded rows behind their own copies of the prompt.

    Returns input_ids (S, L) int64 and attention_mask (S, L) int64, padded on the right with id 0 and mask 0; and for
    each target (R,) the row and column of the position that predicts it.
    """
    flat = batch.input_ids[0]
    rows: list[Tensor] = []
    where = torch.zeros(batch.sequences, batch.tokens, dtype=torch.int64, device=flat.device)
    places = torch.arange(batch.tokens, device=flat.device)
    for segment in batch.segments:
        begin = segment.start + segment.prompt
        for length in segment.answers:
            parts = (slice(segment.shared), slice(segment.start, segment.start + segment.prompt))
            taken = torch.cat([places[part] for part in (*parts, slice(begin, begin + length))])
            where[len(rows), taken] = places[: len(taken)]
            rows.append(flat[taken])
            begin += length
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return ids, mask, batch.sequence, where[batch.sequence, batch.predict_from]


def embedding_rows(causal: Any) -> int:
    """How many token ids a model has an embedding for."""
    embedding = causal.get_input_embeddings()
    return int(getattr(embedding, "num_embeddings", None) or embedding.weight.shape[0])


def settle_path(model: PackedModel) -> str | None:
    """Give the model packed attention if that is right for it; else leave it as it was, on the padded path.

    Returns why not, or None where it is packed.
    """
    causal = model.causal
    own = causal.config._attn_implementation
    # Some architectures choose their attention when they are made. Told another name they would only drop their mask.
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
    """Attend the model's own way, each answer a padded row; see whether its head may still take chosen rows only."""
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
            logits = model._own_logits(batch)
        # Rounding of logits of this size, and of sums over the width in float32.
        width = model.causal.get_output_embeddings().weight.shape[-1]
        unit = torch.finfo(model.compute_dtype).eps + torch.finfo(torch.float32).eps * width**0.5
        model.path.whole_logits = not apart <= _ROUNDINGS * unit * logits.abs().max().item()
    except Exception:  # noqa: BLE001 (whatever a model's own code raises where its trunk is not as others are)
        model.path.whole_logits = True
    finally:
        model.train(training)


def probe(model: PackedModel) -> str | None:
    """Why packed rows do not work for a model whose attention is the packed one; None where they do.

    They work if the layers come to the registered attention and tell it every sliding window that the model asks of
    its masks (a window is longer than the probe's sequences, so it cannot show in their numbers); if no answer depends
    on a token outside its prompt and itself; and if packed log-probabilities equal separate ones.
    """
    batch = probe_batch(model.causal.get_input_embeddings().weight.shape[0], model.device)
    training, lengths = model.training, model.lengths
    model.eval()
    try:
        # In one call, whatever rotary frequencies the longest sequence brings: leaks show in one embedding's gradient.
        model.path.packed, model.lengths = True, None
        with attention.watched() as traffic:
            ours, leaks = _packed_with_leaks(model, batch)
        # One that attends twice would need two places for its keys and values.
        model.path.decodes = max(traffic.layers.values(), default=0) == _PROBE_FORWARDS
        if not traffic.calls:
            return "its layers do not call the registered attention"
        if lost := traffic.windows_asked - traffic.windows_told:
            return f"its layers do not tell the attention of their window of {lost.pop()} tokens"
        if leaks:
            return "tokens of another sequence in the row reach its log-probabilities"
        model.path.packed = False
        apart, tolerance = _apart(model, batch, ours)
        log.debug("packed and separate forwards differ by %.2g (at most %.2g)", apart, tolerance)
        return None if apart <= tolerance else f"packed and separate log-probabilities differ by {apart:.2g}"
    except Exception as error:  # noqa: BLE001 (whatever a model's own code raises at an unknown layout)
        return f"its forward refused the packed row ({type(error).__name__}: {error})".splitlines()[0]
    finally:
        model.path.packed, model.lengths = True, lengths
        model.train(training)


def probe_batch(vocabulary: int, device: torch.device) -> PackedBatch:
    """Two small pairs of random tokens that begin alike."""
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

    What an answer depends on shows in the gradient with respect to the embedded tokens: 0 exactly where attention is
    masked, and not 0, in any number type, where a sequence leaks (by attention, a convolution, a recurrent state).
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
    for sequence in (1, 2):  # one behind its sibling, one behind another tree; both before others
        own, context = spans[sequence]
        answer = ours[model.owners(batch) == sequence].sum()
        (gradient,) = torch.autograd.grad(answer, embedded[0], retain_graph=True)
        for seen in (own, *context):
            gradient[0, seen.start : seen.stop] = 0
        leaks |= bool(gradient.any())
    return ours.detach(), leaks


@torch.no_grad()
def _apart(model: PackedModel, batch: PackedBatch, ours: Tensor) -> tuple[float, float]:
    """How far packed outputs are from separate ones, and how far they may be: root mean squares.

    What they may be is measured: it follows the model's depth, width and number type.
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
    """How far rounding moves a batch's `outputs`: what a step of one unit at every embedded number does, as the root
    mean square over two draws of its signs."""
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


@contextlib.contextmanager
def standard_attention(model: PackedModel, name: str | None = None) -> Iterator[Any]:
    """Inside, the model attends the ordinary way (generate, padded rows); yields the model to call generate on."""
    causal = model.causal
    before = causal.config._attn_implementation
    if before != attention.NAME:
        yield model.model
        return
    causal.set_attn_implementation(name or ("sdpa" if causal._supports_sdpa else "eager"))
    try:
        yield model.model
    finally:
        causal.set_attn_implementation(attention.NAME)
