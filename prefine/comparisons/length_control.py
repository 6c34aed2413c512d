"""The win rate at equal length: what a judge's preference would be if both answers were as long."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from prefine.comparisons.result import Estimate
from prefine.intervals import CONFIDENCE

LENGTH_CONTROL = (
    "At equal length: by the length difference alone (Dubois et al. 2024, arXiv 2404.04475); the difficulty of each "
    "instruction, the paper's third term, is left out."
)
"""How the rate is computed, for reports."""

_FEWEST = 10
# A logit of 15 is a chance of 0.9999997: the fit has no finite solution.
_LARGEST_LOGIT = 15


@dataclass(frozen=True, slots=True)
class LengthControl:
    """A length-controlled win rate, or why there is none.

    Attributes:
        rate: of the candidate, at equal length.
        favours_longer: whether the judge preferred longer answers; None if it is not known.
        why_not: the reason if there is no rate.
    """

    rate: Estimate | None
    favours_longer: bool | None = None
    why_not: str = ""


def length_controlled(wins: Sequence[float], differences: Sequence[float]) -> LengthControl:
    """The win rate at a length difference of 0 by logistic regression (Dubois et al. 2024, arXiv 2404.04475, eq. 2).

    logit P(candidate preferred) = θ + φ · tanh(difference / its standard deviation); the rate is that of θ alone. The
    paper has a third term, the difficulty of each instruction, which needs many models' answers to the same
    instructions. It is left out here. The interval is from the fit's robust standard error (HC1), since ties are half
    wins, whose variance is not binomial.

    Args:
        wins: 1 where the candidate's answer was preferred, 0 where the baseline's was, 0.5 for a tie.
        differences: of lengths in tokens, candidate minus baseline.
    """
    import warnings

    import numpy as np

    if len(wins) < _FEWEST:
        return LengthControl(None, why_not=f"it needs at least {_FEWEST} verdicts")
    y, lengths = np.asarray(wins, float), np.asarray(differences, float)
    deviation = float(lengths.std())
    if deviation == 0:
        return LengthControl(None, why_not="all answers differ in length by the same number of tokens")
    if len(set(wins)) == 1:
        return LengthControl(None, why_not="all verdicts are the same")
    try:
        import statsmodels.api as sm
    except ImportError:
        return LengthControl(None, why_not="statsmodels is not installed: pip install 'prefine[evaluate]'")
    x = np.column_stack([np.ones(len(y)), np.tanh(lengths / deviation)])
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found = sm.GLM(y, x, family=sm.families.Binomial()).fit(cov_type="HC1")
    level, slope = (float(value) for value in found.params)
    error = float(found.bse[0])
    if not found.converged or not math.isfinite(error) or max(abs(level), abs(slope)) > _LARGEST_LOGIT:
        return LengthControl(None, why_not="the fit has no finite solution, as one side always wins at some lengths")
    half = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * error
    value, low, high = (1 / (1 + math.exp(-logit)) for logit in (level, level - half, level + half))
    return LengthControl(Estimate(value=value, low=low, high=high, count=len(y)), slope > 0)
