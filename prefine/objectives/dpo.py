"""Direct preference objectives. Each maps a pair's log-probabilities to one loss: (B,) tensors in, (B,) out.

Throughout, `margin` is log pi(chosen) - log pi(rejected) minus the same under the reference, in nats: the log-ratio
difference of Rafailov et al. 2023 (arXiv 2305.18290), eq. 7, before beta.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from prefine.objectives.masked import Paired, per_sequence


@dataclass(frozen=True)
class PairLogprobs:
    """Inputs of an objective for B pairs.

    Attributes:
        policy: (B,) fp32 summed log-probabilities of each answer under the trained model, nats; with gradient.
        reference: (B,) fp32 the same under the model before the first step.
        tokens: (B,) fp32 answer lengths.
        beta: the recipe's dpo.beta.
    """

    policy: Paired
    reference: Paired
    tokens: Paired
    beta: float


def log_ratio_margin(policy: Paired, reference: Paired) -> Tensor:
    """(log pi_c - log ref_c) - (log pi_r - log ref_r): (B,), nats."""
    return (policy.chosen - reference.chosen) - (policy.rejected - reference.rejected)


def sigmoid(margin: Tensor, beta: float) -> Tensor:
    """-log sigma(beta margin): DPO (arXiv 2305.18290, eq. 7). At policy = reference it is ln 2."""
    return -F.logsigmoid(beta * margin)


def conservative(margin: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """DPO where each label is wrong with probability eps (Mitchell 2023, cDPO note, eq. 3).

    -(1 - eps) log sigma(beta margin) - eps log sigma(-beta margin)
    """
    scaled = beta * margin
    return -(1 - label_smoothing) * F.logsigmoid(scaled) - label_smoothing * F.logsigmoid(-scaled)


def robust(margin: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """An unbiased estimate of the DPO loss on clean labels under flip rate eps < 1/2.

    Chowdhury et al. 2024 (arXiv 2403.00409), eq. 14:
    ((1 - eps) L(margin) - eps L(-margin)) / (1 - 2 eps) with L(m) = -log sigma(beta m)
    """
    scaled = beta * margin
    mixed = -(1 - label_smoothing) * F.logsigmoid(scaled) + label_smoothing * F.logsigmoid(-scaled)
    return mixed / (1 - 2 * label_smoothing)


def hinge(margin: Tensor, beta: float) -> Tensor:
    """max(0, 1 - beta margin): SLiC's rank calibration on log-ratios (Zhao et al. 2023, arXiv 2305.10425, eq. 1)."""
    return torch.relu(1 - beta * margin)


def ipo(margin: Tensor, beta: float) -> Tensor:
    """(margin - 1 / (2 beta))^2: identity preference optimisation (Azar et al. 2023, arXiv 2310.12036, eq. 17).

    Callers pass a margin of per-token means, as the authors recommend for answers of different lengths.
    """
    return (margin - 1 / (2 * beta)) ** 2


def simpo(policy_means: Paired, beta: float, target_margin: float) -> Tensor:
    """-log sigma(beta (mean log pi_c - mean log pi_r) - gamma): SimPO (Meng et al. 2024, arXiv 2405.14734, eq. 6).

    Needs no reference; `policy_means` are log-probabilities divided by the answers' token counts.
    """
    return -F.logsigmoid(beta * (policy_means.chosen - policy_means.rejected) - target_margin)


def bco_pair(log_ratios: Paired, beta: float) -> Tensor:
    """-log sigma(beta h_c) - log sigma(-beta h_r): each answer by itself, against the reference.

    Binary classifier optimisation (Jung et al. 2024, arXiv 2404.04656, eq. 9) of both answers of a pair, with reward
    shift 0, as in TRL. `log_ratios` are log pi - log ref of each answer.
    """
    return -F.logsigmoid(beta * log_ratios.chosen) - F.logsigmoid(-beta * log_ratios.rejected)


def margin_of_tokens(log_ratios: Tensor, signs: Tensor, pairs: Tensor, count: int) -> Tensor:
    """Margins (B,) of pairs whose tokens lie end to end: sums of log-ratios, those of rejected answers negative.

    Args:
        log_ratios: (R,) log pi - log ref of each token.
        signs: (R,) 1 for tokens of chosen answers, -1 for those of rejected ones, 0 for tokens of neither.
        pairs: (R,) int64 number of each token's pair, below count.
        count: B.
    """
    return per_sequence(signs * log_ratios, pairs, count)


def chosen_nll(chosen: Tensor, chosen_tokens: Tensor) -> Tensor:
    """-log pi_c / |c|, a term that keeps the chosen answer likely (Pang et al. 2024, arXiv 2404.19733, eq. 1)."""
    return -chosen / chosen_tokens
