"""The one forward pass of every stage: a PackedBatch in, fp32 log-probabilities of its targets out.

The packed path runs the model's trunk once over the row (see data/batch.py). A model that does not route its attention
through transformers' AttentionInterface takes the padded path instead: each answer a row of its own behind its own
copy of the prompt. A probe decides which, and says so.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from prefine.data.batch import PackedBatch, TokenTree, collate
from prefine.models import attention
from prefine.models.logprobs import Head, logprobs_of_logits, selected_logprobs

# Part of the key of cached log-probabilities: raise it whenever the forward's numbers change.
FORWARD_VERSION = 1

_FP32_TOLERANCE = 1e-4
# In 16-bit types never ask for less than this, nats: implementations can happen to agree on a few tokens.
_LEAST_NOISE = 0.2


class PackedModel(nn.Module):
    """A causal language model (bare, or wrapped by peft) behind the packed forward.

    Args:
        model: transformers' causal LM, or a PeftModel around one.
        compute_dtype: type of the matrix products; others are autocast to it.
        packed: whether to take the packed path; `probe` finds out.

    Calling it with a PackedBatch of R targets gives their log-probabilities, (R,) fp32.
    """

    def __init__(self, model: nn.Module, compute_dtype: torch.dtype, packed: bool = True) -> None:
        super().__init__()
        self.model = model
        self.compute_dtype = compute_dtype
        self.packed = packed

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
            if self.packed:
                return selected_logprobs(self.hidden(batch)[batch.predict_from], batch.targets, self.head())
            return self._padded(batch)

    def hidden(self, batch: PackedBatch) -> Tensor:
        """Last hidden states of the row, (T, H); packed path only."""
        out = self.causal.base_model(
            input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, segments=batch.segments
        )
        return cast(Tensor, out.last_hidden_state[0])

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Casts matrix products to the compute type inside; nothing where that is fp32."""
        if self.compute_dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.compute_dtype)

    def _padded(self, batch: PackedBatch) -> Tensor:
        ids, mask, row, column = unpack(batch)
        out = self.causal(input_ids=ids, attention_mask=mask, use_cache=False)
        return logprobs_of_logits(out.logits[row, column], batch.targets)


def unpack(batch: PackedBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Answers as padded rows behind their own copies of the prompt.

    Returns input_ids (S, L) int64 and attention_mask (S, L) int64, padded on the right with id 0 and mask 0; and for
    each target (R,) the row and column of the position that predicts it.
    """
    flat = batch.input_ids[0]
    rows: list[Tensor] = []
    where = torch.zeros(batch.sequences, batch.tokens, dtype=torch.int64, device=flat.device)
    for segment in batch.segments:
        shared = segment.start + segment.prompt
        begin = shared
        for length in segment.answers:
            where[len(rows), segment.start : shared] = torch.arange(segment.prompt, device=flat.device)
            where[len(rows), begin : begin + length] = torch.arange(length, device=flat.device) + segment.prompt
            rows.append(torch.cat((flat[segment.start : shared], flat[begin : begin + length])))
            begin += length
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return ids, mask, batch.sequence, where[batch.sequence, batch.predict_from]


def probe_batch(vocabulary: int, device: torch.device) -> tuple[PackedBatch, PackedBatch]:
    """Two small batches of random tokens that differ only in the first tree's prompt and first answer."""
    generator = torch.Generator().manual_seed(0)

    def tokens(n: int) -> list[int]:
        return torch.randint(vocabulary // 8, vocabulary, (n,), generator=generator).tolist()

    first = TokenTree(tokens(7), (tokens(4), tokens(3)), (None, None))
    other = TokenTree(tokens(7), (tokens(4), first.answers[1]), (None, None))
    second = TokenTree(tokens(5), (tokens(2), tokens(6)), (None, None))
    return collate([first, second]).to(device), collate([other, second]).to(device)


@torch.no_grad()
def probe(model: PackedModel) -> str | None:
    """Why the packed path does not work for this model; None where it does.

    It works if the trunk accepts and routes `segments`, packed log-probabilities equal separate ones, and a change in
    one tree leaves another tree's exactly alone (cross-contamination: pitfall of every packing implementation).
    """
    vocabulary = model.causal.get_input_embeddings().weight.shape[0]
    batch, changed = probe_batch(vocabulary, model.device)
    training = model.training
    model.eval()
    try:
        model.packed = True
        with recorded_calls() as calls:
            ours = model(batch)
        if not calls:
            return "its layers do not call the registered attention"
        moved = (model(changed) - ours)[batch.sequence >= 2].abs().max().item()
        model.packed = False
        with standard_attention(model):
            theirs = model(batch)
        tolerance = _FP32_TOLERANCE
        if model.compute_dtype != torch.float32:
            # How far rounding alone moves log-probabilities is seen between transformers' own two implementations.
            with standard_attention(model, "eager"):
                tolerance = max(_LEAST_NOISE, 3 * (model(batch) - theirs).abs().max().item())
        apart = (ours - theirs).abs().max().item()
        if moved > tolerance / 10:
            return f"another sequence in the row moved its log-probabilities by {moved:.2g}"
        return None if apart <= tolerance else f"packed and separate log-probabilities differ by {apart:.2g}"
    except (ValueError, TypeError, RuntimeError, AttributeError, IndexError) as error:
        return f"its forward refused the packed row ({type(error).__name__}: {str(error).splitlines()[0]})"
    finally:
        model.packed = True
        model.train(training)


@contextlib.contextmanager
def recorded_calls() -> Iterator[list[None]]:
    """Collect one entry a call of the packed attention while inside."""
    calls: list[None] = []
    attention.listeners.append(calls)
    try:
        yield calls
    finally:
        attention.listeners.remove(calls)


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
