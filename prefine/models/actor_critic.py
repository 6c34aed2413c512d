"""A policy and its critic behind one packed forward: log-probabilities and values of the same tokens."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from prefine.data.batch import PackedBatch
from prefine.models.forward import PackedModel
from prefine.models.logprobs import Head, logprobs_and_entropy, selected_logprobs
from prefine.models.shared_base import using_adapter


class TokenOutputs(NamedTuple):
    """What a forward says of a batch's R targets.

    Attributes:
        logprobs: (R,) fp32, of each target at the policy's temperature.
        values: (R,) fp32, what the critic expects before the target is written; None without a critic.
        entropy: (R,) fp32, nats, of the distribution that the target was drawn from; None unless asked for.
    """

    logprobs: Tensor
    values: Tensor | None
    entropy: Tensor | None


class ActorCritic(PackedModel):
    """A policy with a linear value head.

    Args:
        policy: the packed model; its weights are used, not copied.
        temperature: that the policy samples at; its log-probabilities are those at it.
        critic: None for no critic; shared: the head is on the policy's own last hidden states; adapter: on those of an
            adapter of the critic's own, named "critic".

    Attributes:
        value_head: (H) -> 1, fp32, zeros at first: a critic that expects nothing.
    """

    def __init__(self, policy: PackedModel, temperature: float, critic: str | None) -> None:
        super().__init__(policy.model, policy.compute_dtype, policy.path)
        self.temperature = temperature
        self.critic = critic
        width = self.causal.get_output_embeddings().in_features
        self.value_head = nn.Linear(width, 1, device=policy.device) if critic is not None else None
        if self.value_head is not None:
            nn.init.zeros_(self.value_head.weight)
            nn.init.zeros_(self.value_head.bias)

    def tempered_head(self) -> Head:
        """The output head at the policy's temperature."""
        own = self.head()
        return Head(own.module, own.scale, own.softcap, 1 / self.temperature)

    def forward(  # type: ignore[override]
        self, batch: PackedBatch, *, with_entropy: bool = False, head_only: bool = False
    ) -> TokenOutputs:
        """See TokenOutputs.

        Args:
            with_entropy: whether to give entropies.
            head_only: whether gradients of a shared critic's values stay in its head (while it warms up).
        """
        with self.autocast():
            hidden = self.predicting(batch)
            logprobs, entropy = logprobs_and_entropy(
                hidden, batch.targets, self.tempered_head(), with_entropy=with_entropy
            )
            return TokenOutputs(logprobs, self._values(hidden, batch, head_only), entropy)

    def logprobs(self, batch: PackedBatch) -> Tensor:
        """(R,) fp32 log-probabilities alone, under whichever adapter is on."""
        with self.autocast():
            return selected_logprobs(self.predicting(batch), batch.targets, self.tempered_head())

    def _values(self, hidden: Tensor, batch: PackedBatch, head_only: bool) -> Tensor | None:
        if self.value_head is None:
            return None
        if self.critic == "adapter":
            with using_adapter(self.model, "critic"):
                hidden = self.predicting(batch)
        elif head_only:
            hidden = hidden.detach()
        with torch.autocast(self.device.type, enabled=False):  # values are small differences: fp32, as scores are
            values: Tensor = self.value_head(hidden.float())[:, 0]
        return values
