"""The forward pass of all stages: from a PackedBatch to fp32 log-probabilities of its targets, or to scores.

A model is a trunk, which computes hidden states, and a head, which reads them. The packed path runs the trunk once over
the row (see data/tokens/trees.py). A model that does not route its attention through transformers' AttentionInterface
takes the padded path instead: each answer is a separate row after its own copy of the prompt. A probe decides, and the
choice is shown.
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
from prefine.models.forward.active_adapter import OWN_ADAPTER, using_adapter
from prefine.models.forward.attention import CachedRow
from prefine.models.forward.logprobs import Head, adjusted, logprobs_and_entropy, logprobs_of_logits
from prefine.models.forward.rotary import forget_lengths, length_rule

# Part of the cache key of log-probabilities: increase it whenever the forward's numbers change.
FORWARD_VERSION = 4


@dataclass
class ForwardPath:
    """How a trunk is run.

    Attributes:
        packed: whether to take the packed path; `choose_path` sets it.
        whole_logits: on the padded path, whether the model must compute all its logits; `take_padded_path` sets it.
        decodes: on the packed path, whether the model can also generate token by token; the probe sets it.
    """

    packed: bool = True
    whole_logits: bool = True
    decodes: bool = True

    @property
    def hidden_states(self) -> bool:
        """Whether a head may read the trunk's hidden states; otherwise the model itself computes its logits."""
        return self.packed or not self.whole_logits


class PackedModel(nn.Module):
    """A trunk and a head: a transformers model, bare or wrapped by peft, behind the packed forward.

    Policy, reference, critic and reward models can share a trunk. They differ in their head and in the adapter that is
    active, and a forward takes both as arguments.

    Args:
        model: transformers' causal LM or sequence classifier, or a PeftModel around one.
        compute_dtype: dtype of the matrix products; other dtypes are autocast to it.
        head: the head of a forward unless another one is passed; log-probabilities by default.

    Attributes:
        head: as the argument. A head that is trained must be this one, so that its weights are parameters of the model.
        path: how the trunk is run.
        lengths: how rotary frequencies depend on the length of a sequence; None if they do not. Sequences that would
            change each other's numbers are computed separately.
    """

    def __init__(self, model: nn.Module, compute_dtype: torch.dtype, head: OutputHead | None = None) -> None:
        super().__init__()
        self.model = model
        self.compute_dtype = compute_dtype
        self.head = LanguageHead() if head is None else head
        self.path = ForwardPath()
        self.lengths = length_rule(self.causal.config)

    @property
    def causal(self) -> Any:
        """The transformers model itself, without the peft wrapper."""
        model = cast(Any, self.model)
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def forward(
        self, batch: PackedBatch, *, head: OutputHead | None = None, adapter: str | None = OWN_ADAPTER, **options: Any
    ) -> Any:
        """The head's output for the batch: see the heads.

        Args:
            head: a head to use instead of the model's own.
            adapter: the adapter to activate; None for none. OWN_ADAPTER changes nothing.
            options: options of the head.
        """
        other = contextlib.nullcontext() if adapter == OWN_ADAPTER else using_adapter(self.model, adapter)
        with self.autocast(), other:
            return (self.head if head is None else head)(self, batch, **options)

    def hidden(self, input_ids: Tensor, position_ids: Tensor, segments: Sequence[Segment] | CachedRow) -> Tensor:
        """(T, H) hidden states of a packed row of T tokens, both tensors (1, T) int64."""
        out = self.causal.base_model(input_ids=input_ids, position_ids=position_ids, use_cache=False, segments=segments)
        return cast(Tensor, out.last_hidden_state[0])

    def at_targets(self, batch: PackedBatch) -> Tensor:
        """(R, H) hidden states that the targets are predicted from, on either path."""
        return self._by_length(batch, self._at_targets, of_targets=True)

    def at_ends(self, batch: PackedBatch) -> Tensor:
        """(S, H) hidden states at the last token of each answer, on either path."""
        return self._by_length(batch, self._at_ends, of_targets=False)

    def own_logits(self, batch: PackedBatch) -> Tensor:
        """(R, V) logits of the targets as the model itself computes them, on padded rows."""

        def logits(part: PackedBatch) -> Tensor:
            ids, mask, row, column = unpack(part)
            out = self.causal(input_ids=ids, attention_mask=mask, use_cache=False)
            return cast(Tensor, out.logits[row, column])

        return self._by_length(batch, logits, of_targets=True)

    def logits_head(self, temperature: float = 1.0) -> Head:
        """The layer from hidden states to logits, with the model's transformations of logits, at a temperature."""
        config = self.causal.config.get_text_config()
        scale = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
        softcap = getattr(config, "final_logit_softcapping", None)
        return Head(self.causal.get_output_embeddings(), scale, softcap, 1 / temperature)

    def _trunk(self, batch: PackedBatch) -> Tensor:
        return self.hidden(batch.input_ids, batch.position_ids, batch.segments)

    def _at_targets(self, batch: PackedBatch) -> Tensor:
        if self.path.packed:
            return self._trunk(batch)[batch.predict_from]
        ids, mask, row, column = unpack(batch)
        return self._padded_trunk(ids, mask)[row, column]

    def _at_ends(self, batch: PackedBatch) -> Tensor:
        if self.path.packed:
            return self._trunk(batch)[batch.last_tokens()]
        ids, mask, *_ = unpack(batch)
        return self._padded_trunk(ids, mask)[torch.arange(len(ids), device=ids.device), mask.sum(1) - 1]

    def _padded_trunk(self, ids: Tensor, mask: Tensor) -> Tensor:
        out = self.causal.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
        return cast(Tensor, out.last_hidden_state)

    def _by_length(self, batch: PackedBatch, states: Callable[[PackedBatch], Tensor], *, of_targets: bool) -> Tensor:
        """The rows of `states` for a batch, one per target or per answer. Answers that would change each other's rotary
        frequencies are computed separately."""
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

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Inside, matrix products are cast to the compute type; does nothing if that is fp32."""
        if self.compute_dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.compute_dtype)


class OutputHead(nn.Module):
    """Reads the hidden states of a trunk: called with a PackedModel and a batch, under the model's autocast."""

    def owners(self, batch: PackedBatch) -> Tensor:
        """int64: the answer that each row of the head's output belongs to."""
        return batch.sequence


class LanguageHead(OutputHead):
    """The language model's own output layer: (R,) fp32 log-probabilities of the batch's targets.

    Args:
        temperature: the sampling temperature that log-probabilities are computed at.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, model: PackedModel, batch: PackedBatch) -> Tensor:
        """See the class."""
        if model.path.hidden_states:
            return self.read(model, batch, model.at_targets(batch), with_entropy=False)[0]
        logits = model.own_logits(batch)
        return logprobs_of_logits(logits if self.temperature == 1 else logits.float() / self.temperature, batch.targets)

    def read(
        self, model: PackedModel, batch: PackedBatch, hidden: Tensor, *, with_entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities of the targets, and the entropies of their distributions (nats) if asked for.

        Args:
            hidden: (R, H), the model's `at_targets`.
        """
        return logprobs_and_entropy(
            hidden, batch.targets, model.logits_head(self.temperature), with_entropy=with_entropy
        )


class LogitsHead(OutputHead):
    """The language model's own output layer: (R, V) fp32 logits of the batch's targets, all in memory at once."""

    def forward(self, model: PackedModel, batch: PackedBatch) -> Tensor:
        """See the class."""
        if model.path.hidden_states:
            head = model.logits_head()
            return adjusted(head.module(model.at_targets(batch)), head)
        return model.own_logits(batch).float()


class ScoreHead(OutputHead):
    """A reward model's linear score head: (S, k) fp32, k raw scores of each answer.

    A score is read at an answer's last token, its end of turn, where the model has seen all of it. The position comes
    from lengths, so padding cannot move it, even if the padding token is also the end of turn.

    Args:
        linear: hidden states (N, H) to scores (N, k), fp32; None for the sequence classifier's own layer, `score`.
    """

    def __init__(self, linear: nn.Linear | None = None) -> None:
        super().__init__()
        self.linear = linear

    def owners(self, batch: PackedBatch) -> Tensor:
        """(S,) int64: one row per answer."""
        return torch.arange(batch.sequences, device=batch.input_ids.device)

    def forward(self, model: PackedModel, batch: PackedBatch) -> Tensor:
        """See the class."""
        linear = cast(nn.Linear, model.causal.score) if self.linear is None else self.linear
        if not batch.sequences:
            return torch.zeros(0, linear.out_features, device=model.device)
        return in_fp32(linear, model.at_ends(batch))


def in_fp32(linear: nn.Module, hidden: Tensor) -> Tensor:
    """(N, k) fp32 output of a linear head for hidden states (N, H), whatever dtype the trunk computes in.

    A bf16 score has only three digits, and advantages and PPO's rewards are differences of scores and values.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        return cast(Tensor, linear(hidden.float()))


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Inside, the module is in eval mode; the mode of every part is restored afterwards."""
    before = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in before:
            part.training = True


def unpack(batch: PackedBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Answers as padded rows, each after its own copy of the prompt.

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
    """The number of token ids that a model has an embedding for."""
    embedding = causal.get_input_embeddings()
    return int(getattr(embedding, "num_embeddings", None) or embedding.weight.shape[0])


@contextlib.contextmanager
def standard_attention(model: PackedModel, name: str | None = None) -> Iterator[Any]:
    """Inside, the model uses ordinary attention (generate, padded rows); yields the model to call generate on."""
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
