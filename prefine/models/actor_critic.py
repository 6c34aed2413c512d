"""A policy and its critic in one forward: log-probabilities and values of the same tokens."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from prefine.data.tokens.trees import PackedBatch
from prefine.models.forward.logprobs import Head, logprobs_and_entropy, selected_logprobs
from prefine.models.forward.packed import PackedModel
from prefine.models.shared_base import using_adapter


class TokenOutputs(NamedTuple):
    """Outputs for the R targets of a batch.

    Attributes:
        logprobs: (R,) fp32, of each target at the policy's temperature.
        values: (R,) fp32, the critic's value before each target; None without a critic.
        entropy: (R,) fp32, nats, of the distribution of each target; None unless requested.
    """

    logprobs: Tensor
    values: Tensor | None
    entropy: Tensor | None


class ActorCritic(PackedModel):
    """A policy with a linear value head.

    Args:
        policy: the packed model; its weights are used, not copied.
        temperature: the sampling temperature, which log-probabilities are computed at.
        critic: None for no critic; "shared": the value head reads the policy's last hidden states; "adapter": those
            under the critic's own adapter, named "critic".

    Attributes:
        value_head: (H) -> 1, fp32, initialised to 0.
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
        """(R,) fp32 log-probabilities alone, under the active adapter."""
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
