"""Warnings that only a PPO run needs: too few prompts to judge it by, and a critic that explains nothing."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from prefine.formatting import figure, plural
from prefine.report.facts import RunFacts, mapping, numbers
from prefine.report.parts import Caution

_FEWEST_PROMPTS = 20
# The last quarter of the updates, but at least three: earlier ones are the critic's own training.
_FEWEST_UPDATES = 3


def ppo_cautions(facts: RunFacts) -> Iterator[Caution]:
    """Few held-out prompts; a critic whose explained variance was not above 0 over the last updates."""
    if facts.stage != "ppo":
        return
    prompts = facts.heldout_count if facts.responses else None
    if prompts is not None and prompts < _FEWEST_PROMPTS:
        yield Caution(
            f"Only {plural(prompts, 'held-out prompt')}: small changes of the reward cannot be seen.",
            "Hold out more prompts (data.heldout, data.heldout_fraction) and raise rollout.heldout_prompts. "
            "More answers to each (rollout.heldout_samples) help less.",
        )
    explained = numbers(facts.train, "explained_variance")
    has_critic = mapping(facts.manifest.get("recipe")).get("advantage", "gae") == "gae"
    if not has_critic or len(explained) < _FEWEST_UPDATES:
        return
    last = explained[-max(_FEWEST_UPDATES, len(explained) // 4) :]
    average = statistics.fmean(last)
    if average <= 0:
        yield Caution(
            f"The critic explains nothing: over the last {len(last)} updates its explained variance was "
            f"{figure(average, 2)} on average.",
            "Advantages are then little better than plain returns. Train longer, raise ppo.critic_learning_rate or "
            "ppo.value_warmup_updates, or use advantage rloo, which needs no critic.",
        )
