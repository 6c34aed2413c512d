"""KL divergence of a policy from its reference, estimated from the policy's own tokens; and the penalty's coefficient.

With x drawn from the policy and r = ref(x) / policy(x), both estimate KL(policy || ref) in nats (Schulman 2020,
"Approximating KL divergence"):

    k1 = -log r            unbiased; single tokens may be negative
    k3 = (r - 1) - log r   unbiased as well, never negative, less noisy

k1 is part of the reward in gae and rloo: there the gradient of its mean is that of the KL. As a loss neither has that
gradient (arXiv 2512.21852); `kl_loss`, the penalty of grpo, does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


def k1(policy: Tensor, reference: Tensor) -> Tensor:
    """-log r of each token from log-probabilities: (T,), (T,) -> (T,)."""
    return policy - reference


def k3(policy: Tensor, reference: Tensor) -> Tensor:
    """(r - 1) - log r of each token from log-probabilities: (T,), (T,) -> (T,)."""
    log_ratio = reference - policy
    return torch.expm1(log_ratio) - log_ratio


def kl_loss(logprobs: Tensor, old_logprobs: Tensor, reference: Tensor) -> Tensor:
    """The KL penalty of GRPO's loss: (T,), nats, on tokens that pi_old drew.

    Its value is ratio k3 with ratio = pi / pi_old: k3 as in Shao et al. 2024 (arXiv 2402.03300, eq. 3-4), with an
    importance weight for tokens drawn by pi_old (DeepSeek-AI 2025, arXiv 2512.02556, "unbiased KL estimate"). Its mean
    is the KL, and the gradient of the mean is that of the KL, also in later passes over the same answers; k3 alone has
    the gradient of KL(ref || pi). The gradient of ratio k3 is ratio k1 grad log pi. It is computed in that form,
    because the two terms that autograd would add cancel if r is large.

    Args:
        logprobs: (T,) log pi, the only argument that gets a gradient.
        old_logprobs: (T,) log pi_old.
        reference: (T,) log ref.
    """
    ratio = importance_ratio(logprobs, old_logprobs)
    near = torch.minimum(reference, logprobs + 60)  # keeps r within the range of fp32; affects the value only
    value, slope = ratio * k3(logprobs, near), ratio * k1(logprobs, reference).detach()
    return slope + (value - slope).detach()


def importance_ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """pi / pi_old of each token, (T,); kept within the range of fp32, as an infinite ratio times 0 would be NaN."""
    return torch.exp((logprobs - old_logprobs).clamp(-60, 60))


@dataclass
class KlController:
    """The coefficient of the KL penalty, fixed or steered towards a target.

    Adaptive: after an update with n sequences of mean KL d, coefficient *= 1 + e n / horizon with
    e = clip(d / target - 1, -0.2, 0.2) (Ziegler et al. 2019, arXiv 1909.08593, sec. 2.2; its K_beta is 1 / horizon
    per sequence). n / horizon is at most 1: no update changes the coefficient by more than a fifth.

    Attributes:
        coefficient: the current beta.
        kind: fixed or adaptive.
        target: nats per token.
        horizon: number of sequences over which an error e changes the coefficient by the factor 1 + e.
    """

    coefficient: float
    kind: Literal["fixed", "adaptive"] = "fixed"
    target: float = 0.1
    horizon: int = 10_000

    def update(self, kl: float, sequences: int) -> None:
        """Adapt the coefficient after an update on `sequences` sequences with this mean KL, nats per token."""
        if self.kind == "adaptive":
            error = min(max(kl / self.target - 1, -0.2), 0.2)
            self.coefficient *= 1 + error * min(sequences / self.horizon, 1.0)
