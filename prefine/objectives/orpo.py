"""Odds ratio preference optimisation: a supervised loss and a penalty on the odds of rejected answers, in one stage.

Hong et al. 2024 (arXiv 2403.07691). There is no reference. `means` are log-probabilities divided by the answers' token
counts (eq. 1), nats per token: (B,) each.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from prefine.objectives.masked import Paired

# The largest mean log-probability whose odds are computed; beyond it 1 - P is lost to rounding in fp32.
_LARGEST = -1e-6


def log_odds_ratio(means: Paired) -> Tensor:
    """log odds(chosen) - log odds(rejected), with odds = P / (1 - P), eq. 3 and 4: (B,)."""
    return _log_odds(means.chosen) - _log_odds(means.rejected)


def odds_ratio(means: Paired) -> Tensor:
    """L_OR = -log sigma(log odds ratio), eq. 7: (B,). At equal odds it is ln 2."""
    return -F.logsigmoid(log_odds_ratio(means))


def _log_odds(mean: Tensor) -> Tensor:
    """log P - log(1 - P) from log P, without cancellation for P near 0 and near 1."""
    certain = mean.clamp(max=_LARGEST)
    return mean - torch.log(-torch.expm1(certain))
