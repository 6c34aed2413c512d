"""What a PPO recipe may say; what it shares with the other stages is in prefine/recipe.py."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from prefine.recipe import (
    Action,
    Count,
    Fraction,
    GuardSection,
    GuardsSection,
    ModelSection,
    NonFiniteGuard,
    Positive,
    Sources,
    TrainingSection,
    WritingRecipe,
)
from prefine.recipe_loading import RecipeSection


class RewardSource(RecipeSection):
    """One thing that scores answers."""

    name: str = Field("runs/reward", description="a reward run, a reward model of the hub, or module:function")
    weight: float = Field(1.0, description="its share in the sum; negative for what is unwanted")
    scale: Literal["auto", "std", "running", "none"] = Field(
        "auto",
        description="divide by the std measured when the model was trained, or by that of all scores so far in the "
        "run; auto: std where there is one, running for other models, none for functions",
    )
    timeout_s: Positive = Field(600.0, description="of one call of a function")


class PpoRewardSection(RewardSource):
    """What is optimised."""

    more: list[RewardSource] = Field([], description="further sources; the weighted scores are added")
    clip: Positive | None = Field(5.0, description="the sum is kept within plus and minus this, before the shaping")
    length_penalty: Annotated[float, Field(ge=0)] = Field(0.0, description="taken off for every 100 tokens")
    missing_eos: Literal["none", "penalty", "replace"] = Field(
        "penalty",
        description="for answers that do not end by themselves: subtract missing_eos_value, or score minus it",
    )
    missing_eos_value: Annotated[float, Field(ge=0)] = 1.0
    whiten: bool = Field(False, description="scale token rewards to std 1, their mean kept")
    judge: str | None = Field(
        None, description="a second reward model, never optimised: held-out answers are scored by it, too"
    )


class RolloutSection(RecipeSection):
    """How answers to learn from are written."""

    samples_per_prompt: Count | None = Field(
        None, description="answers to each prompt; null: 1 with gae, 4 with rloo and grpo, which need at least 2"
    )
    max_new_tokens: Count = 128
    temperature: Positive = Field(1.0, description="of the policy: log-probabilities and ratios are those at it")
    slots: Count = Field(64, description="answers written at once")
    heldout_prompts: Annotated[int, Field(ge=0)] = Field(32, description="answered at every evaluation")


class KlSection(RecipeSection):
    """The pull towards the reference: a penalty in each token's reward (prefine/objectives/kl.py)."""

    coefficient: Annotated[float, Field(ge=0)] = Field(0.05, description="of k1, per nat")
    controller: Literal["fixed", "adaptive"] = "fixed"
    target: Positive = Field(0.1, description="of the adaptive controller, nats a token")
    horizon: Count = Field(10_000, description="of the adaptive controller, answers")

    @model_validator(mode="after")
    def _something_to_steer(self) -> KlSection:
        if self.controller == "adaptive" and self.coefficient == 0:
            raise ValueError("controller adaptive multiplies the coefficient, which is 0: begin with 0.05, say")
        return self


class PpoSection(RecipeSection):
    """The update (prefine/objectives/ppo.py)."""

    epochs: Count = Field(2, description="passes over the answers of an update")
    minibatches: Count = Field(2, description="optimiser steps in a pass")
    clip: Annotated[float, Field(gt=0, lt=1)] = Field(0.2, description="of the ratio")
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    lam: Annotated[float, Field(ge=0, le=1)] = Field(0.95, description="lambda of GAE")
    normalise_advantages: bool = Field(True, description="to mean 0 and std 1 over an update's tokens; gae only")
    entropy_coefficient: Annotated[float, Field(ge=0)] = 0.0
    max_kl: Positive | None = Field(
        0.1, description="end an update's passes early when it has moved the policy this far, nats a token"
    )
    critic: Literal["shared", "adapter"] = Field(
        "shared", description="a value head on the policy's own trunk, or on an adapter of the critic's own"
    )
    critic_learning_rate: Positive = 1e-3
    value_clip: Positive | None = Field(0.2, description="of a value's change in one update")
    value_coefficient: Annotated[float, Field(ge=0)] = 0.1
    value_warmup_updates: Annotated[int, Field(ge=0)] = Field(
        0, description="first updates in which the critic's head alone learns"
    )


class PpoTrainingSection(TrainingSection):
    """As for the other stages; a step is an update: answers to batch_size prompts, and all passes over them."""

    batch_size: Count = Field(32, description="prompts an update, over all processes")
    learning_rate: Positive = 5e-5
    schedule: Literal["cosine", "linear", "constant"] = "constant"
    warmup_fraction: Fraction = 0.0
    adam_epsilon: Positive = 1e-5
    evaluate_every_steps: Count | None = Field(10, description="null: only before and after")
    save_every_steps: Count | None = Field(5, description="null: only at the end; guards roll back to what is saved")
    sample_every_steps: Count | None = Field(5, description="keep some answers of every so many updates; null: none")


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


class ProxyGapGuard(GuardSection):
    """Held-out reward up while the judge's score, in its standard deviations, or ten times the accuracy on held-out
    pairs, is down by more than the limit; looked at with each evaluation."""

    limit: float = 0.5


class PpoGuards(GuardsSection):
    """Of PPO: those of every stage, and these on the answers of each update."""

    non_finite: NonFiniteGuard = NonFiniteGuard(action="roll_back")
    kl: KlGuard = KlGuard()
    entropy: EntropyGuard = EntropyGuard()
    degenerate: DegenerateGuard = DegenerateGuard()
    value_loss: ValueLossGuard = ValueLossGuard()
    proxy_gap: ProxyGapGuard = ProxyGapGuard()


class PpoRecipe(WritingRecipe):
    """Proximal policy optimisation, and group advantages on the same answers."""

    run: str = "runs/ppo"
    model: ModelSection = ModelSection(name="runs/sft")
    training: PpoTrainingSection = PpoTrainingSection()
    advantage: Literal["gae", "rloo", "grpo"] = Field(
        "gae", description="gae has a critic; rloo and grpo compare the answers to one prompt"
    )
    reward: PpoRewardSection = PpoRewardSection()
    rollout: RolloutSection = RolloutSection()
    kl: KlSection = KlSection()
    ppo: PpoSection = PpoSection()
    guards: PpoGuards = PpoGuards()
    heldout_pairs: Sources | None = Field(
        None, description="preference pairs, never optimised: the share that the policy itself orders as people did"
    )

    @property
    def samples_per_prompt(self) -> int:
        """Answers to each prompt."""
        return self.rollout.samples_per_prompt or (1 if self.advantage == "gae" else 4)

    @model_validator(mode="after")
    def _groups_have_siblings(self) -> PpoRecipe:
        if self.advantage != "gae" and self.samples_per_prompt < 2:
            raise ValueError(
                f"advantage {self.advantage} compares the answers to one prompt: rollout.samples_per_prompt is "
                f"{self.samples_per_prompt}; set it to 2 or more (4, say)"
            )
        return self

    @model_validator(mode="after")
    def _parts_go_together(self) -> PpoRecipe:
        training = self.training
        if self.ppo.critic == "adapter" and self.model.gradient_checkpointing:
            raise ValueError(
                "ppo.critic adapter and model.gradient_checkpointing do not go together: layers would be computed "
                "again with the policy's adapter; set critic to shared"
            )
        if self.ppo.value_warmup_updates and training.weight_decay:
            raise ValueError(
                f"training.weight_decay {training.weight_decay} would move the policy during the "
                f"{self.ppo.value_warmup_updates} updates of ppo.value_warmup_updates: set one of them to 0"
            )
        if not self.rollout.heldout_prompts and (training.keep_best or training.early_stopping_patience):
            raise ValueError(
                "training.keep_best and early_stopping_patience go by held-out answers: rollout.heldout_prompts is 0"
            )
        return self

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
                f"guards.proxy_gap.action is {action}, but nothing tells of a gap without {', '.join(names)}: "
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
        return self
