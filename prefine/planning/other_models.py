"""The models that a stage of reinforcement learning holds besides the one that it trains."""

from __future__ import annotations

from prefine.planning.model_facts import ModelFacts
from prefine.planning.stage_facts import StageFacts

_FP32 = 4


def other_models_bytes(stage: StageFacts) -> int:
    """The weights of reference and reward models; 0 for other methods."""
    if stage.rl is None:
        return 0
    return _reference_bytes(stage) + sum(_reward_bytes(stage, each) for each in stage.rewards)


def other_models_why(stage: StageFacts) -> str:
    """What they are, for people."""
    apart = sum(not shares_weights(stage, each) for each in stage.rewards)
    shared = len(stage.rewards) - apart
    parts = ["a copy of all weights as reference"] if stage.all_weights else []
    parts += [f"{shared} reward model{'s' * (shared > 1)} on the same weights"] if shared else []
    parts += [f"{apart} reward model{'s' * (apart > 1)} with weights of their own"] if apart else []
    return ", ".join(parts) or "the reference's adapter"


def shares_weights(stage: StageFacts, reward: ModelFacts) -> bool:
    """Whether a reward model is an adapter on the policy's weights (see models/shared_base.shares_base)."""
    return reward.adapter is not None and not stage.all_weights and reward.base == stage.model.base


def _reference_bytes(stage: StageFacts) -> int:
    """The reference: a copy of all weights, or of the adapter that the policy began with; a new one needs none."""
    if stage.all_weights:
        return stage.base_parameters * _FP32
    return 0 if stage.model.adapter is None else stage.own_adapter * _FP32


def _reward_bytes(stage: StageFacts, reward: ModelFacts) -> int:
    if shares_weights(stage, reward) and reward.adapter is not None:
        targets = stage.shapes.targets(reward.adapter.targets)
        return sum(reward.adapter.rank * (each.inputs + each.outputs) for each in targets) * _FP32
    return reward.architecture.parameters * stage.itemsize
