"""Guards of PPO: limits on the figures of an update."""

from __future__ import annotations

from prefine.recipe.guards import Action, GuardSection, GuardsSection, NonFiniteGuard
from prefine.recipe.sections import Count


class KlGuard(GuardSection):
    """k3 to the reference, nats a token, above the limit."""

    limit: float = 0.2
    patience: Count = 2
    action: Action = "roll_back"


class EntropyGuard(GuardSection):
    """Entropy of the policy, nats a token, below the limit."""

    limit: float = 0.1
    patience: Count = 2
    action: Action = "roll_back"


class DegenerateGuard(GuardSection):
    """Share of blank, stuck and looping answers above that of the first update by more than the limit."""

    limit: float = 0.3
    patience: Count = 2
    action: Action = "roll_back"


class ValueLossGuard(GuardSection):
    """Mean loss of the critic above the limit."""

    limit: float = 100.0
    patience: Count = 2
    action: Action = "roll_back"


class RewardSpreadGuard(GuardSection):
    """Standard deviation of the answers' rewards below the limit: there is nothing to learn from."""

    limit: float = 1e-6
    patience: Count = 2


class RewardClippedGuard(GuardSection):
    """Share of answers whose score is beyond reward.clip, above the limit: they all get the same reward."""

    limit: float = 0.5
    patience: Count = 2


class ProxyGapGuard(GuardSection):
    """Held-out reward rose while the judge's score (in its standard deviations), or ten times the accuracy on held-out
    pairs, fell by more than the limit; checked at each evaluation.
    """

    limit: float = 0.5


class PpoGuards(GuardsSection):
    """Guards of PPO: those of every stage, and these on the answers of each update."""

    non_finite: NonFiniteGuard = NonFiniteGuard(action="roll_back")
    kl: KlGuard = KlGuard()
    entropy: EntropyGuard = EntropyGuard()
    degenerate: DegenerateGuard = DegenerateGuard()
    value_loss: ValueLossGuard = ValueLossGuard()
    reward_spread: RewardSpreadGuard = RewardSpreadGuard()
    reward_clipped: RewardClippedGuard = RewardClippedGuard()
    proxy_gap: ProxyGapGuard = ProxyGapGuard()
