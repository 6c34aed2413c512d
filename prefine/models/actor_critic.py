"""A policy and its critic in one forward: log-probabilities and values of the same tokens."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from prefine.data.tokens.trees import PackedBatch
from prefine.models.forward.active_adapter import using_adapter
from prefine.models.forward.packed import LanguageHead, OutputHead, PackedModel, in_fp32


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


class ValueHead(nn.Module):
    """A critic's linear head.

    Args:
        model: the model whose hidden states it reads; gives its width and device.
        adapter: the critic's own adapter; None for a critic that reads the policy's hidden states.

    Attributes:
        linear: (H) -> 1, fp32, initialised to 0.
    """

    def __init__(self, model: PackedModel, adapter: str | None = None) -> None:
        super().__init__()
        self.adapter = adapter
        self.linear = nn.Linear(model.causal.get_output_embeddings().in_features, 1, device=model.device)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, model: PackedModel, batch: PackedBatch, hidden: Tensor) -> Tensor:
        """(R,) fp32 values before the batch's targets.

        Args:
            hidden: (R, H), the policy's `at_targets`; not read by a critic with its own adapter.
        """
        if self.adapter is not None:
            with using_adapter(model.model, self.adapter):
                hidden = model.at_targets(batch)
        return in_fp32(self.linear, hidden)[:, 0]


class ActorCritic(OutputHead):
    """The heads of a policy and its critic, if there is one.

    Args:
        language: the policy's head.
        value: the critic's head; None without a critic.
    """

    def __init__(self, language: LanguageHead, value: ValueHead | None = None) -> None:
        super().__init__()
        self.language = language
        self.value = value

    def forward(
        self, model: PackedModel, batch: PackedBatch, *, with_entropy: bool = False, head_only: bool = False
    ) -> TokenOutputs:
        """See TokenOutputs.

        Args:
            with_entropy: whether to compute entropies.
            head_only: whether gradients of a shared critic's values stop at its head, while the critic warms up.
        """
        hidden = model.at_targets(batch)
        logprobs, entropy = self.language.read(model, batch, hidden, with_entropy=with_entropy)
        shared = hidden.detach() if head_only else hidden
        return TokenOutputs(logprobs, None if self.value is None else self.value(model, batch, shared), entropy)
