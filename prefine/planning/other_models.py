"""The models that a stage of reinforcement learning holds besides the one that it trains."""

from __future__ import annotations

from prefine.planning.model_facts import ModelFacts
from prefine.planning.stage_facts import StageFacts
from prefine.planning.weights import FP32, frozen_bytes


def other_models_bytes(stage: StageFacts) -> int:
    """The weights of reference and reward models; 0 for other methods."""
    if stage.rl is None:
        return 0
    return _reference_bytes(stage) + sum(_reward_bytes(stage, each) for each in stage.rewards)


def other_models_why(stage: StageFacts) -> str:
    """What they are, for people."""
    reasons = [why for each in stage.rewards if (why := why_separate(stage, each)) is not None]
    apart, shared = len(reasons), len(stage.rewards) - len(reasons)
    parts = ["a copy of all weights as reference"] if stage.all_weights else []
    parts += [f"{shared} reward model{'s' * (shared > 1)} on the same weights"] if shared else []
    if apart:
        which = "; ".join(dict.fromkeys(reasons))
        parts.append(f"{apart} reward model{'s' * (apart > 1)} with weights of {'their' if apart > 1 else 'its'} own")
        parts[-1] += f" ({which})"
    return ", ".join(parts) or "the reference's adapter"


def why_separate(stage: StageFacts, reward: ModelFacts) -> str | None:
    """Why a run loads a reward model with weights of its own (see models/shared_base.shares_base).

    None if it is an adapter on the policy's weights.
    """
    if reward.adapter is None or reward.scores is None:
        return "not an adapter of a reward run"
    if stage.all_weights:
        return "all weights of the policy are trained"
    if reward.base != stage.model.base:
        return "of another base model"
    if reward.scores.quantization not in (None, stage.quantization):
        return (
            f"model.quantization was {reward.scores.quantization} in its training, the policy's is {stage.quantization}"
        )
    if reward.scores.dtype not in (None, stage.dtype):
        return f"it computes in {reward.scores.dtype}, the policy in {stage.dtype}"
    return None


def _reference_bytes(stage: StageFacts) -> int:
    """The reference: a copy of all weights, or of the adapter that the policy began with; a new one needs none."""
    if stage.all_weights:
        return stage.base_parameters * FP32
    return 0 if stage.model.adapter is None else stage.own_adapter * FP32


def _reward_bytes(stage: StageFacts, reward: ModelFacts) -> int:
    """Its adapter; and, unless it shares the policy's, its weights as models/scoring/packed_scorer.load_reward does."""
    shapes, adapter = reward.architecture, 0
    if reward.adapter is not None:
        targets = shapes.targets(reward.adapter.targets)
        adapter = sum(reward.adapter.rank * (each.inputs + each.outputs) for each in targets) * FP32
    if why_separate(stage, reward) is None:
        return adapter
    scores = reward.scores
    if scores is None:
        return adapter + frozen_bytes(shapes, 1, "none", stage.machine.dtype)
    dtype = "float32" if reward.adapter is None else scores.dtype or stage.machine.dtype
    return adapter + frozen_bytes(shapes, 1, scores.quantization or "none", dtype)
