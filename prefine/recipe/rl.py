"""The recipe of PPO, RLOO and GRPO."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from prefine.recipe.effects import SeveralRulesError, Unread, without_effect
from prefine.recipe.guards import GuardSection
from prefine.recipe.loading import RecipeSection
from prefine.recipe.rl_guards import PpoGuards
from prefine.recipe.sections import (
    LARGEST_TEMPERATURE,
    Count,
    Fraction,
    ModelSection,
    PathText,
    Positive,
    RunFolder,
    Sources,
    TrainingSection,
)
from prefine.recipe.stage import WritingRecipe

# Settings that only a critic or token-level advantages use.
_OF_GAE = (
    *("ppo.gamma", "ppo.lam", "ppo.normalise_advantages", "ppo.critic", "ppo.critic_learning_rate", "ppo.value_clip"),
    *("ppo.value_coefficient", "ppo.value_warmup_updates", "reward.whiten"),
)

# Settings of losses with a ratio, or of groups with more than a pair that counts.
_NOT_OF_PAIRS = (
    *("ppo.clip", "ppo.clip_high", "ppo.loss_average", "ppo.entropy_coefficient"),
    *("rollout.drop_equal_groups", "rollout.skip_truncated"),
)


def _settings_of(guard: str, section: GuardSection) -> tuple[str, ...]:
    """A guard's settings by their dotted names; a guard that is off needs no figures."""
    return (
        () if section.action == "off" else tuple(f"guards.{guard}.{name}" for name in ("limit", "patience", "action"))
    )


class RewardSource(RecipeSection):
    """A source of rewards."""

    name: PathText = Field("runs/reward", description="a reward run, a reward model from the hub, or module:function")
    weight: float = Field(1.0, description="its weight in the sum; negative for a penalty")
    scale: Literal["auto", "std", "running", "none"] = Field(
        "auto",
        description="subtract the mean and divide by the std: as measured when the model was trained (std), or of all "
        "scores so far in the run (running); auto: std if there is one, else running for models, none for functions",
    )
    timeout_s: Positive = Field(600.0, description="timeout of one call of a function")


class PpoRewardSection(RewardSource):
    """The reward that is optimised."""

    more: list[RewardSource] = Field([], description="further sources; weighted scores are summed")
    clip: Positive | None = Field(5.0, description="the sum is clipped to ± this before shaping")
    length_penalty: Annotated[float, Field(ge=0)] = Field(0.0, description="subtracted for every 100 tokens")
    overlong_tokens: Count | None = Field(
        None,
        description="an answer that comes within so many tokens of rollout.max_new_tokens loses overlong_penalty, in "
        "proportion to how far it comes (arXiv 2503.14476, eq. 13); null: no such penalty",
    )
    overlong_penalty: Positive = Field(1.0, description="what an answer of rollout.max_new_tokens loses")
    missing_eos: Literal["none", "penalty", "replace"] = Field(
        "penalty",
        description="for answers that do not end by themselves: subtract missing_eos_value, or use its negative as "
        "the score",
    )
    missing_eos_value: Annotated[float, Field(ge=0)] = 1.0
    whiten: bool = Field(False, description="gae only: scale token rewards to std 1 without shifting their mean")
    judge: PathText | None = Field(
        None, description="a second reward model, never optimised, that also scores held-out answers"
    )


class RolloutSection(RecipeSection):
    """How answers to learn from are generated."""

    samples_per_prompt: Count | None = Field(
        None,
        description="answers to each prompt; null: 1 with gae, 2 with online_dpo, 4 with rloo and grpo; at least 2 but "
        "for gae",
    )
    drop_equal_groups: bool = Field(
        False, description="rloo and grpo: skip prompts whose answers all have the same reward (arXiv 2503.14476)"
    )
    skip_truncated: bool = Field(
        False,
        description="rloo and grpo: answers cut at max_new_tokens are not learned from; their rewards still count in "
        "the group's mean (overlong filtering, arXiv 2503.14476)",
    )
    max_new_tokens: Count = 128
    temperature: Annotated[float, Field(gt=0, le=LARGEST_TEMPERATURE)] = Field(
        1.0, description="sampling temperature of the policy; log-probabilities and ratios are computed at it"
    )
    slots: Count = Field(64, description="answers generated at once")
    heldout_prompts: Annotated[int, Field(ge=0)] = Field(
        32, description="held-out prompts that are answered at every evaluation"
    )
    heldout_samples: Count = Field(
        4,
        description="answers to each held-out prompt, with the same random numbers every time; compared by each "
        "prompt's mean",
    )


class KlSection(RecipeSection):
    """The KL penalty (prefine/objectives/kl.py): in each token's reward, with grpo in the loss."""

    coefficient: Annotated[float, Field(ge=0)] = Field(0.05, description="coefficient of the penalty, per nat")
    controller: Literal["fixed", "adaptive"] = "fixed"
    target: Positive = Field(0.1, description="target of the adaptive controller, nats a token")
    horizon: Count = Field(10_000, description="horizon of the adaptive controller, answers")

    @model_validator(mode="after")
    def _something_to_steer(self) -> KlSection:
        if self.controller == "adaptive" and self.coefficient == 0:
            raise ValueError("controller adaptive multiplies the coefficient, which is 0: start with 0.05, for example")
        return self


class PpoSection(RecipeSection):
    """The update (prefine/objectives/ppo.py)."""

    epochs: Count = Field(2, description="passes over an update's answers")
    minibatches: Count = Field(2, description="optimiser steps in a pass")
    clip: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.2, description="clip range of the ratio, below 1 and, without clip_high, above it"
    )
    clip_high: Positive | None = Field(
        None,
        description="clip range above 1, from clip to below 1; null: clip. Clip-higher of DAPO is 0.28 (arXiv "
        "2503.14476)",
    )
    loss_average: Literal["tokens", "answers", "max_length"] = Field(
        "tokens",
        description="policy loss of a step: the mean of its tokens (DAPO), of its answers' means (the paper of GRPO), "
        "or the sum over answers times rollout.max_new_tokens (Dr. GRPO, arXiv 2503.20783)",
    )
    advantage_std: Literal["group", "update", "none"] = Field(
        "group",
        description="grpo only: divide advantages by the std of their group's rewards, of all rewards of the update "
        "(arXiv 2508.08221), or not (Dr. GRPO, arXiv 2503.20783)",
    )
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    lam: Annotated[float, Field(ge=0, le=1)] = Field(0.95, description="lambda of GAE")
    normalise_advantages: bool = Field(
        True, description="whiten advantages to mean 0 and std 1 over an update's tokens; gae only"
    )
    entropy_coefficient: Annotated[float, Field(ge=0)] = 0.0
    max_kl: Positive | None = Field(
        0.1, description="end an update's passes early when the policy has moved this far, nats a token"
    )
    critic: Literal["shared", "adapter"] = Field(
        "shared", description="shared: a value head on the policy's trunk; adapter: the critic has its own adapter"
    )
    critic_learning_rate: Positive = 1e-3
    value_clip: Positive | None = Field(0.2, description="clip range of a value's change in one update")
    value_coefficient: Annotated[float, Field(ge=0)] = 0.1
    value_warmup_updates: Annotated[int, Field(ge=0)] = Field(
        0, description="first updates, in which only the critic learns"
    )

    @model_validator(mode="after")
    def _clip_high_is_a_range_above_clip(self) -> PpoSection:
        high = self.clip_high
        if high is not None and high >= 1:
            hint = f": for {high} set {round(high - 1, 6)}" if 1 < high < 2 else ""
            raise ValueError(
                f"clip_high is {high}, but must be below 1: it is the range above ratio 1, not the largest "
                f"ratio{hint}. DAPO's is 0.28"
            )
        if high is not None and high < self.clip:
            raise ValueError(
                f"clip_high {high} is below clip {self.clip}, so that good answers could move less than bad ones: "
                f"set clip_high to {self.clip} or more, or clip to {high} or less"
            )
        return self


class PpoTrainingSection(TrainingSection):
    """Defaults for PPO; a step is an update: answers to batch_size prompts, and all passes over them."""

    batch_size: Count = Field(32, description="most prompts of an update, over all processes")
    learning_rate: Positive = 5e-5
    schedule: Literal["cosine", "linear", "constant"] = "constant"
    warmup_fraction: Fraction = 0.0
    adam_epsilon: Positive = 1e-5
    evaluate_every_steps: Count | None = Field(10, description="null: only before and after")
    save_every_steps: Count | None = Field(5, description="null: only at the end; guards roll back to what is saved")
    sample_every_steps: Count | None = Field(5, description="save some answers every so many updates; null: none")


class PpoRecipe(WritingRecipe):
    """Proximal policy optimisation, also with group advantages (RLOO, GRPO)."""

    run: RunFolder = "runs/ppo"
    model: ModelSection = ModelSection(name="runs/sft")
    training: PpoTrainingSection = PpoTrainingSection()
    advantage: Literal["gae", "rloo", "grpo", "online_dpo"] = Field(
        "gae",
        description="gae has a critic; rloo and grpo compare the answers to one prompt; online_dpo takes DPO's loss on "
        "the best and the worst of them (arXiv 2402.04792)",
    )
    reward: PpoRewardSection = PpoRewardSection()
    rollout: RolloutSection = RolloutSection()
    kl: KlSection = KlSection()
    ppo: PpoSection = PpoSection()
    guards: PpoGuards = PpoGuards()
    heldout_pairs: Sources | None = Field(
        None,
        description="preference pairs, never optimised: the run reports the share that the policy ranks as people did",
    )

    @property
    def samples_per_prompt(self) -> int:
        """Answers to each prompt."""
        return self.rollout.samples_per_prompt or {"gae": 1, "online_dpo": 2}.get(self.advantage, 4)

    @model_validator(mode="after")
    def _groups_have_siblings(self) -> PpoRecipe:
        if self.advantage != "gae" and self.samples_per_prompt < 2:
            raise ValueError(
                f"advantage {self.advantage} compares the answers to one prompt: rollout.samples_per_prompt is "
                f"{self.samples_per_prompt}; set it to 2 or more, for example 4"
            )
        if self.advantage == "online_dpo" and self.kl.coefficient == 0:
            raise ValueError(
                "kl.coefficient is the beta of DPO's loss with advantage online_dpo, and at 0 nothing is learned: set "
                "it to 0.1, for example"
            )
        return self

    @model_validator(mode="after")
    def _parts_go_together(self) -> PpoRecipe:
        training = self.training
        if self.ppo.critic == "adapter" and self.model.gradient_checkpointing:
            raise ValueError(
                "ppo.critic adapter and model.gradient_checkpointing cannot be combined: layers would be recomputed "
                "with the policy's adapter; set critic to shared"
            )
        if training.keep_best or training.early_stopping_patience:
            needed = {
                "rollout.heldout_prompts is 0": self.rollout.heldout_prompts,
                "data.heldout_fraction is 0": self.data.heldout or self.data.heldout_fraction,
            }
            if missing := [words for words, value in needed.items() if not value]:
                raise ValueError(
                    f"training.keep_best and early_stopping_patience need held-out answers: {' and '.join(missing)}; "
                    "set it above 0"
                )
        return self

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> PpoRecipe:
        if unread := without_effect(self, self._unread()):
            raise SeveralRulesError(unread)
        return self

    def _unread(self) -> list[Unread]:
        """Settings without effect, given the others."""
        return [*self._unread_by_advantage(), *self._unread_by_others()]

    def _unread_by_advantage(self) -> list[Unread]:
        return [
            Unread(
                self.advantage != "gae",
                (*_OF_GAE, *_settings_of("value_loss", self.guards.value_loss)),
                f"advantage {self.advantage} has no critic",
                "advantage to gae",
            ),
            Unread(
                self.advantage == "gae",
                ("rollout.drop_equal_groups", "rollout.skip_truncated"),
                "gae has no groups",
                "advantage to grpo",
            ),
            Unread(
                self.advantage == "online_dpo",
                _NOT_OF_PAIRS,
                "online_dpo learns from pairs, without ratios and ties",
                "advantage to grpo",
            ),
            Unread(
                self.advantage != "grpo",
                ("ppo.advantage_std",),
                f"advantage {self.advantage} does not divide by one",
                "advantage to grpo",
            ),
        ]

    def _unread_by_others(self) -> list[Unread]:
        apart = self.data.heldout or self.data.heldout_fraction
        written = apart and self.rollout.heldout_prompts
        one_step = self.ppo.epochs * self.ppo.minibatches == 1
        clips = [name for name in ("clip", "clip_high", "max_kl", "value_clip") if getattr(self.ppo, name) is not None]
        return [
            Unread(
                self.reward.overlong_tokens is None,
                ("reward.overlong_penalty",),
                "reward.overlong_tokens is null",
                "that to a number of tokens",
            ),
            Unread(
                self.kl.controller == "fixed", ("kl.target", "kl.horizon"), "kl.controller is fixed", "it to adaptive"
            ),
            Unread(self.kl.coefficient == 0, ("guards.kl_factor",), "kl.coefficient is 0", "that to 0.05"),
            Unread(
                self.reward.missing_eos == "none",
                ("reward.missing_eos_value",),
                "reward.missing_eos is none",
                "that to penalty or replace",
            ),
            Unread(
                self.reward.clip is None,
                _settings_of("reward_clipped", self.guards.reward_clipped),
                "reward.clip is null",
                "that to 5, for example",
            ),
            Unread(
                one_step,
                tuple(f"ppo.{name}" for name in clips),
                "an update takes one step, at ratio 1",
                "ppo.epochs or ppo.minibatches above 1",
            ),
            Unread(
                not written,
                ("reward.judge", "rollout.heldout_samples"),
                "no held-out answers are generated",
                "rollout.heldout_prompts and data.heldout_fraction above 0",
            ),
            Unread(
                not apart, ("heldout_pairs",), "nothing is held out to evaluate on", "data.heldout_fraction above 0"
            ),
            Unread(
                self.ppo.value_coefficient == 0 and self.advantage == "gae",
                ("ppo.value_warmup_updates", "ppo.value_clip", "ppo.critic_learning_rate"),
                "ppo.value_coefficient is 0, and the critic learns nothing",
                "that to 0.1",
            ),
            Unread(
                not (self.reward.judge or self.heldout_pairs),
                ("guards.proxy_gap.limit", "guards.proxy_gap.patience"),
                "nothing measures the gap",
                "reward.judge or heldout_pairs",
            ),
        ]

    @model_validator(mode="after")
    def _gap_can_be_seen(self) -> PpoRecipe:
        action = self.guards.proxy_gap.action
        if action not in ("stop", "roll_back"):
            return self
        missing = {
            "reward.judge or heldout_pairs": self.reward.judge or self.heldout_pairs,
            "rollout.heldout_prompts": self.rollout.heldout_prompts,
            "data.heldout or data.heldout_fraction": self.data.heldout or self.data.heldout_fraction,
            "training.evaluate_every_steps": self.training.evaluate_every_steps,
        }
        if names := [name for name, value in missing.items() if not value]:
            raise ValueError(
                f"guards.proxy_gap.action is {action}, but nothing measures the gap without {', '.join(names)}: "
                "set it, or the action to warn or off"
            )
        return self

    @model_validator(mode="after")
    def _answers_have_room(self) -> PpoRecipe:
        longest = self.data.max_length_tokens - 1
        if self.rollout.max_new_tokens > longest:
            raise ValueError(
                f"rollout.max_new_tokens {self.rollout.max_new_tokens} leaves a prompt no room within "
                f"data.max_length_tokens {self.data.max_length_tokens}: at most {longest}"
            )
        if (self.reward.overlong_tokens or 0) > self.rollout.max_new_tokens:
            raise ValueError(
                f"reward.overlong_tokens {self.reward.overlong_tokens} is more than an answer can have: at most "
                f"rollout.max_new_tokens, {self.rollout.max_new_tokens}"
            )
        return self
