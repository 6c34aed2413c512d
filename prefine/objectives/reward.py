"""Reward-model objectives. (B,) tensors in, (B,) out; of pairs, or of single answers with votes.

Throughout, `margin` is r(chosen) - r(rejected) of each pair, minus the margin that the data asks for, if any; `right`
is the probability in [0, 1] that the label is right: 1 for a plain label, 1 - eps under label smoothing, 1/2 for a tie.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def bradley_terry(margin: Tensor, right: Tensor) -> Tensor:
    """-right log sigma(margin) - (1 - right) log sigma(-margin), nats.

    The negative log-likelihood of Bradley and Terry (1952) as Ouyang et al. 2022 (arXiv 2203.02155, eq. 1) fit it, with
    the margin of Touvron et al. 2023 (arXiv 2307.09288, eq. 2) and the smoothed labels of Wang et al. 2024
    (arXiv 2401.06080, eq. 10). At equal scores it is ln 2 whatever `right` is.
    """
    return -right * F.logsigmoid(margin) - (1 - right) * F.logsigmoid(-margin)


def hinge(margin: Tensor, right: Tensor) -> Tensor:
    """right max(0, 1 - margin) + (1 - right) max(0, 1 + margin): the ranking SVM's loss (Joachims 2002)."""
    return right * torch.relu(1 - margin) + (1 - right) * torch.relu(1 + margin)


def centring(chosen: Tensor, rejected: Tensor) -> Tensor:
    """(r_c + r_r)^2: keeps scores around 0, which pairs alone do not (Eisenstein et al. 2023, arXiv 2312.09244)."""
    return (chosen + rejected) ** 2


def vote(score: Tensor, up: Tensor, smoothing: float) -> Tensor:
    """The logistic loss of single answers: sigma(r) is the probability of a thumbs-up (Cobbe et al. 2021, sec. 4.2).

    Args:
        score: (B,) scores.
        up: (B,) 1 for a thumbs-up, 0 for a thumbs-down.
        smoothing: share of votes that are assumed to be wrong.
    """
    return bradley_terry(score, up + smoothing * (1 - 2 * up))
