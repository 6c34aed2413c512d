"""What a method reads of the data, and what the judgements in it say: a weak signal, cues that are no quality."""

from __future__ import annotations

from typing import Any

from prefine.advice.situation import Signal, Situation
from prefine.data.audit.length_bias import against_length
from prefine.recipe.dpo import DpoSection
from prefine.recipe.kto import KtoSection

# Two people who agree on fewer than 70 % of answers leave a signal that a pull towards the reference must protect.
_LOW_AGREEMENT = 0.7
_MANY_CONTRADICTIONS = 0.05
_MANY_TIES = 0.25
# The pull towards the reference by method; labels that are often wrong get a pull several times as strong.
BETAS = {"dpo": DpoSection().beta, "kto": KtoSection().beta}
_PULL_WEAK = 3
_SHALLOW = 0.75
_LENGTH_DECIDES = 0.8
# What each method learns from, by kinds of records.
NEEDS = {
    "sft": ("demonstrations", "preferences", "votes"),
    "dpo": ("preferences",),
    "orpo": ("preferences",),
    "kto": ("votes",),
    "ppo": ("preferences", "votes", "prompts", "demonstrations"),
    "reward": ("preferences", "votes"),
}


def counts_by_kind(situation: Situation) -> dict[str, int]:
    """Usable records of each kind."""
    return {
        "preferences": situation.pairs,
        "votes": situation.votes,
        "demonstrations": situation.demonstrations,
        "prompts": situation.prompts,
    }


def kind_read(situation: Situation, method: str) -> str:
    """The kind of records that a method's stage reads: the first one of which there are usable records.

    PPO reads prompts, and the prompts of other records where there are none; SFT takes only votes that are up.
    """
    kinds = ("prompts", *NEEDS[method]) if method == "ppo" else NEEDS[method]
    counts = counts_by_kind(situation) | ({"votes": situation.thumbs_up} if method == "sft" else {})
    named = [kind for kind in kinds if situation.of(kind)]
    return next((kind for kind in named if counts[kind]), named[0] if named else kinds[0])


def judged_kind(situation: Situation, method: str) -> str | None:
    """The kind of judgements that a method or its reward model learns from; None if it learns from none."""
    if method == "ppo" and situation.reward is not None:
        return None
    kind = kind_read(situation, "reward" if method == "ppo" else method)
    return kind if kind in ("preferences", "votes") else None


def weak_signal(situation: Situation, method: str) -> list[str]:
    """Why the judgements that a method learns from say little, in sentences; none if nothing speaks for that."""
    kind = judged_kind(situation, method)
    if kind is None:
        return []
    found = []
    signal = situation.signals.get(kind, Signal())
    judged = situation.votes if kind == "votes" else situation.pairs + situation.ties
    different = judged - signal.duplicates
    if signal.agreement_at_most is not None and signal.agreement_at_most < _LOW_AGREEMENT:
        found.append(f"People agree on {signal.agreement:.0%} of the answers that two of them judged: a weak signal.")
    if different and signal.contradictions >= max(1, _MANY_CONTRADICTIONS * different):
        found.append(
            f"{signal.contradictions:,} of {different:,} judgements are contradicted by another one: a weak signal."
        )
    if kind == "preferences" and situation.ties and situation.ties >= _MANY_TIES * judged:
        found.append(f"{situation.ties:,} of {judged:,} pairs are ties: a weak signal.")
    return found


def unsure_signal(situation: Situation, method: str) -> list[str]:
    """Low agreement that may be chance, in a sentence; nothing if it is not low, or surely low: see `weak_signal`."""
    signal = situation.signals.get(judged_kind(situation, method) or "", Signal())
    if signal.agreement is None or signal.agreement_at_most is None:
        return []
    if signal.agreement >= _LOW_AGREEMENT or signal.agreement_at_most < _LOW_AGREEMENT:
        return []
    return [
        f"People agree on {signal.agreement:.0%} of the answers that two of them judged; of all it may be up to "
        f"{signal.agreement_at_most:.0%}, so no setting is derived from it. Have more answers judged by two people."
    ]


def shallow_cues(situation: Situation, method: str, settings: dict[str, Any]) -> list[str]:
    """What a model can learn instead of quality, in sentences with a remedy.

    Args:
        settings: that are derived from the data, by dotted name.
    """
    kind = judged_kind(situation, method)
    if kind is None or method == "sft":
        return []
    found = []
    signal = situation.signals.get(kind, Signal())
    if signal.shallow_accuracy is not None and signal.shallow_accuracy >= _SHALLOW:
        found.append(
            f"Single words tell better answers from worse ones in {signal.shallow_accuracy:.0%} of cases: a model "
            "can learn these words and not the quality. prefine data audit shows them."
        )
    bias = signal.length_bias
    if bias is not None and max(bias, 1 - bias) >= _LENGTH_DECIDES:
        longer = "longer" if bias >= _LENGTH_DECIDES else "shorter"
        remedy = "Balance the lengths."
        if method == "dpo":
            remedy = against_length(pull=_PULL_WEAK if "dpo.beta" in settings else 1)
        elif method == "ppo" and longer == "longer":
            remedy = "Balance the lengths, or set reward.length_penalty, and watch the lengths of answers."
        whose = "The better answer" if kind == "preferences" else "Of a vote up and one down, the answer voted up"
        found.append(
            f"{whose} is the {longer} one in {max(bias, 1 - bias):.0%} of pairs: a model can learn length. {remedy}"
        )
    return found


def larger_beta(method: str) -> float:
    """The beta of a method for a weak signal."""
    return round(_PULL_WEAK * BETAS[method], 6)
