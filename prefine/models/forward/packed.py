"""The one forward pass of every stage: a PackedBatch in, fp32 log-probabilities of its targets, or scores, out.

The packed path runs the model's trunk once over the row (see data/tokens/trees.py). A model that does not route its
attention through transformers' AttentionInterface takes the padded path instead: each answer a row of its own behind
its own copy of the prompt. A probe decides which, and says so.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from prefine.data.tokens.trees import PackedBatch, Segment
from prefine.models.forward import attention
from prefine.models.forward.attention import CachedRow
from prefine.models.forward.logprobs import Head, adjusted, logprobs_of_logits, selected_logprobs
from prefine.models.forward.rotary import forget_lengths, length_rule

# Part of the key of cached log-probabilities: raise it whenever the forward's numbers change.
FORWARD_VERSION = 4


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

    def target_logits(self, batch: PackedBatch) -> Tensor:
        """(R, V) fp32 logits that the batch's targets are predicted from, all of them in memory at once."""
        with self.autocast():
            if not self.path.packed and self.path.whole_logits:
                return self._by_length(batch, self._own_logits, of_targets=True).float()
            head = self.head()
            return adjusted(head.module(self.predicting(batch)), head)

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
