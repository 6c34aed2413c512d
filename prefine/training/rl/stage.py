"""The stage of reinforcement learning: PPO, RLOO and GRPO. A step of its run is an update (update.py)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from prefine.data.tokens.trees import PackedBatch, TokenTree
from prefine.errors import CheckpointError
from prefine.formatting import listing
from prefine.models.loading.load import LoadedModel, load_model
from prefine.objectives import kl
from prefine.recipe.guards import GuardSection
from prefine.recipe.rl import PpoRecipe
from prefine.recipe.sections import LoraSection, ModelSection
from prefine.records import Prompt
from prefine.training.display import Display
from prefine.training.loop.contract import Loss, State, Steps, Sums
from prefine.training.loop.guards import Limit
from prefine.training.rl.algorithms import algorithm_of
from prefine.training.rl.first_ratio import FirstRatio
from prefine.training.rl.heldout import HeldoutAnswers
from prefine.training.rl.load_rewards import load_rewards, require_rewards, reward_functions
from prefine.training.rl.policy import Policy, is_critic
from prefine.training.rl.rollout_log import RolloutLog
from prefine.training.rl.update import Components, Progress, Update
from prefine.training.run.run_stage import run_stage
from prefine.training.run.stage import Session, Stage
from prefine.training.run.user_functions import UserFunction

# A recipe cannot change it: a negative estimate shows a fault, as sampling and training see different policies.
_NEGATIVE_KL = GuardSection(limit=-0.05, patience=5, action="warn")


def run_ppo(recipe: PpoRecipe, resume: bool, display: Display | Console, *, force: bool = False) -> Path:
    """Optimise a reward as the recipe says; returns the run's folder.

    Args:
        force: go on with a reward model whose readiness report says no-go.

    Raises:
        PrefineError: whatever cannot go on; what was saved before can be resumed.
    """
    return run_stage(PpoStage(recipe, force=force), recipe, resume, display)


class PpoStage(Stage):
    """Trains a policy to generate what is rewarded.

    Attributes:
        policy: once loaded.
        rewards: once begun.
    """

    name = "ppo"
    kind = Prompt

    def __init__(self, recipe: PpoRecipe, *, force: bool = False) -> None:
        self._recipe = recipe
        self._force = force
        self.answer_tokens = recipe.rollout.max_new_tokens
        self._kl = kl.KlController(recipe.kl.coefficient, recipe.kl.controller, recipe.kl.target, recipe.kl.horizon)
        self._algorithm = algorithm_of(recipe)
        self._progress = Progress()
        self._forced: list[str] = []

    def require(self, display: Display) -> None:
        """Find the rewards, and refuse those that are not fit for PPO."""
        self._forced = require_rewards(self._recipe, display, force=self._force)

    def functions(self) -> Sequence[UserFunction]:
        """Functions that are rewards. One that failed may be corrected, so they may change."""
        return reward_functions(self._recipe)

    def load(self, section: ModelSection, lora: LoraSection | None) -> LoadedModel:
        """The policy with its critic, and the reference beside it on the same weights."""
        loaded = load_model(section, lora)
        self.policy = Policy(loaded, self._recipe, with_critic=self._algorithm.has_critic)
        return loaded

    def parameters(self, loaded: LoadedModel) -> dict[str, nn.Parameter]:
        """The policy's weights and the critic's."""
        return self.policy.parameters()

    def learning_rate(self, parameter: str) -> float | None:
        """The critic has its own."""
        return self._recipe.ppo.critic_learning_rate if is_critic(parameter) else None

    def guards(self) -> Sequence[Limit]:
        """See docs/ppo.md."""
        found = self._recipe.guards
        return (
            Limit("kl", "kl_k3", found.kl, "the policy has gone far from what it was"),
            Limit("entropy", "entropy", found.entropy, "the policy writes the same thing over and over", below=True),
            Limit("degenerate", "degenerate", found.degenerate, "answers are blank, stuck or loop", from_start=True),
            Limit("value_loss", "value_loss", found.value_loss, "the critic no longer follows"),
            Limit("reward_spread", "reward_std", found.reward_spread, "all answers are rewarded alike", below=True),
            Limit("reward_clipped", "reward_clipped", found.reward_clipped, "reward.clip is too small for the scores"),
            Limit(
                "proxy_gap", "proxy_gap", found.proxy_gap, "the reward rises, what it stands for falls", heldout=True
            ),
            Limit("kl_negative", "kl_k1", _NEGATIVE_KL, "estimates of the KL should not stay negative", below=True),
        )

    def begin(self, session: Session) -> Loss:
        """Load the rewards, and give the step's loss."""
        session.override(*self._forced)
        self.rewards = load_rewards(self._recipe, session.loaded, session.display)
        policy = self.policy
        self._heldout = HeldoutAnswers(session, policy.model, self.rewards, policy.reference_logprobs)
        self.before = self._heldout.before
        self._log = RolloutLog(session, self._recipe.training.sample_every_steps)
        self._parts = Components(
            session,
            self._recipe,
            policy,
            self.rewards,
            self._algorithm,
            self._kl,
            FirstRatio(session.processes, enabled=self._recipe.training.self_checks),
        )

        def loss(model: nn.Module, batch: PackedBatch) -> Sums:
            return self._update.loss(model, batch)

        return loss

    # --- One update --------------------------------------------------------------------------------------------------

    def step(self, steps: Steps, trees: Sequence[TokenTree]) -> dict[str, float]:
        """One update on these prompts, from where a checkpoint left it."""
        self._update = Update(steps.number, self._progress, self._parts)
        metrics = self._update.run(steps, trees)
        rollouts = self._progress.rollouts
        assert rollouts is not None  # noqa: S101
        self._log.record(rollouts, steps.number + 1)
        self._kl.update(metrics["kl_k1"], len(rollouts.lengths))
        self._progress = Progress()
        return metrics

    # --- What a checkpoint holds -------------------------------------------------------------------------------------

    def state(self) -> State:
        """The controller, statistics of rewards, and the update in progress."""
        progress = self._progress.state()
        json = {
            "kl_coefficient": self._kl.coefficient,
            "rewards": self.rewards.state(),
            "weights": self._fingerprints(),
            "checked": self._parts.first_ratio.done,
            **progress.json,
        }
        return State(progress.tensors, json)

    def _fingerprints(self) -> dict[str, str]:
        """Hashes of what a run depends on besides its policy, as they were when loaded."""
        return {**self.rewards.fingerprints(), **self._heldout.fingerprints()}

    def load_state(self, state: State) -> None:
        """Return to a state that `state` gave.

        Raises:
            CheckpointError: files of a reward model or judge are others than when the run began.
        """
        json = state.json
        now = self._fingerprints()
        if changed := [name for name in now if json["weights"].get(name) != now[name]]:
            raise CheckpointError(
                f"--resume: the files of {listing(changed)} are not what they were when this run began",
                "Bring the files back, or start a run of another name.",
            )
        self._kl.coefficient = json["kl_coefficient"]
        self.rewards.load_state(json["rewards"])
        self._parts.first_ratio.done |= json["checked"]
        self._progress = Progress.from_state(state)

    def rolled_back(self) -> dict[str, Any]:
        """Pull harder towards the reference from now on."""
        self._kl.coefficient *= self._recipe.guards.kl_factor
        return {"kl_coefficient": self._kl.coefficient} if self._kl.coefficient else {}

    # --- Held-out answers --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Answers to held-out prompts, scored: see HeldoutAnswers."""
        return self._heldout.evaluate()

    def finish(self) -> dict[str, Any]:
        """Held-out answers before and after."""
        return self._heldout.finish()
