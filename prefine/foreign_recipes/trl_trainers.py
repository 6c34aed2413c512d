"""TRL's trainers, and which of them a YAML file of its command line can be for, as the file does not say it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from prefine.errors import RecipeError

# Name of a trainer's configuration, without Config -> prefine's stage and the kind of advantages.
TRAINERS = {
    "SFT": ("sft", ""),
    "DPO": ("dpo", ""),
    "CPO": ("dpo", ""),
    "Reward": ("reward", ""),
    "KTO": ("kto", ""),
    "ORPO": ("orpo", ""),
    "GRPO": ("ppo", "grpo"),
    "RLOO": ("ppo", "rloo"),
    "PPO": ("ppo", "gae"),
    "OnlineDPO": ("ppo", "online_dpo"),
}
# Settings that not all of them have, by the trainers that have them; the tests compare them with TRL 1.16's classes.
_HAVING: dict[tuple[str, ...], str] = {
    ("SFT",): "assistant_only_loss completion_only_loss dataset_kwargs dataset_text_field eval_packing packing",
    ("DPO",): "discopop_tau f_divergence_type ld_alpha loss_weights use_weighting",
    ("CPO",): "cpo_alpha simpo_gamma",
    ("Reward",): "center_rewards_coefficient",
    ("KTO",): "desirable_weight undesirable_weight",
    ("GRPO",): "delta importance_sampling_level multi_objective_aggregation scale_rewards top_entropy_quantile",
    ("RLOO",): "normalize_advantages reward_clip_range",
    ("PPO",): (
        "cliprange cliprange_value gamma kl_coef lam num_mini_batches num_ppo_epochs response_length "
        "total_episodes vf_coef whiten_rewards"
    ),
    ("OnlineDPO", "PPO"): "reward_model_path",
    ("GRPO", "RLOO"): (
        "epsilon epsilon_high generation_batch_size mask_truncated_completions num_generations num_iterations "
        "steps_per_generation"
    ),
    ("GRPO", "OnlineDPO", "RLOO"): "reward_weights top_k top_p use_vllm",
    ("DPO", "KTO"): "precompute_ref_batch_size precompute_ref_log_probs",
    ("CPO", "DPO"): "label_smoothing",
    ("CPO", "GRPO", "ORPO", "RLOO"): "max_completion_length",
    ("GRPO", "OnlineDPO", "PPO", "RLOO"): "temperature",
    ("DPO", "SFT"): "padding_free truncation_mode",
}
OWNERS = {name: owners for owners, names in _HAVING.items() for name in names.split()}


def trainer_of(path: Path, names: Collection[str], method: str | None) -> str:
    """The trainer that a YAML file is for.

    Args:
        path: the file, for messages.
        names: of its settings.
        method: a stage of prefine, or a trainer's name, such as grpo; None if the settings alone must tell.

    Raises:
        RecipeError: none fits, or several do.
    """
    telling = [name for name in names if name in OWNERS]
    possible = [trainer for trainer in TRAINERS if all(trainer in OWNERS[name] for name in telling)]
    if not possible:
        raise RecipeError(
            f"{path} has settings that no trainer has together: {', '.join(telling)}", "Keep those of one trainer."
        )
    named = named_by(method, possible)
    if method is not None and not named:
        raise RecipeError(
            f"{path} is not for {method!r:.60}: its settings are those of {', '.join(possible)}",
            f"Say which: --method {', '.join(each.lower() for each in possible)}.",
        )
    if len(named) > 1:
        raise RecipeError(
            f"{path} does not say which trainer it is for, as the command did (trl sft, trl dpo, …)",
            f"Say which: --method {', '.join(each.lower() for each in named)}.",
        )
    return named[0]


def named_by(method: str | None, trainers: Collection[str]) -> list[str]:
    """Those of some trainers that a method means: the one of that name, or else those of that stage."""
    if method is None:
        return list(trainers)
    own = [trainer for trainer in trainers if trainer.lower() == method.lower()]
    return own or [trainer for trainer in trainers if TRAINERS[trainer][0] == method.lower()]
