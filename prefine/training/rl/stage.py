"""The reinforcement learning stage: PPO, RLOO and GRPO. One step of a run is one update (update.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from prefine.data.tokens.trees import PackedBatch, TokenTree
from prefine.errors import CheckpointError
from prefine.formatting import listing
from prefine.models.loading.load import LoadedModel
from prefine.objectives import kl
from prefine.objectives.masked import padded
from prefine.recipe.guards import GuardSection
from prefine.recipe.rl import PpoRecipe
from prefine.recipe.sections import ModelSection
from prefine.records import Prompt
from prefine.runs.atomic import JSON
from prefine.training.display import Display
from prefine.training.loop.contract import State, Steps, Sums
from prefine.training.loop.guards import Limit
from prefine.training.rl.algorithms import algorithm_of
from prefine.training.rl.first_ratio import FirstRatio
from prefine.training.rl.heldout import HeldoutAnswers
from prefine.training.rl.load_rewards import load_rewards, require_rewards, reward_functions
from prefine.training.rl.policy import Policy, is_critic
from prefine.training.rl.rewards import Rewards
from prefine.training.rl.rollout_log import RolloutLog
from prefine.training.rl.rollouts import Rollouts
from prefine.training.rl.update import Components, Progress, Update
from prefine.training.run.before import Before
from prefine.training.run.run_stage import run_stage
from prefine.training.run.session import Session
from prefine.training.run.stage import Objective, Stage
from prefine.training.run.user_functions import UserFunction
from prefine.training.tracking.tracker import Details, Table

# Not a setting: estimates that stay negative show a fault, as sampling and training then use different policies.
_NEGATIVE_KL = GuardSection(limit=-0.05, patience=5, action="warn")


def run_ppo(recipe: PpoRecipe, resume: bool, display: Display | Console, *, force: bool = False) -> Path:
    """Optimise a reward as the recipe says; returns the run's folder.

    Args:
        force: use a reward model even if its readiness report says no-go.

    Raises:
        PrefineError: the run cannot go on. It can be resumed from what was saved.
    """
    return run_stage(PpoStage(recipe, force=force), resume, display)


@dataclass(kw_only=True)
class LoadedPolicy(LoadedModel):
    """A loaded model as policy: `packed` is policy and critic; see Policy for the reference."""

    policy: Policy


class PpoStage(Stage[PpoRecipe, Prompt]):
    """Trains a policy on the rewards of its answers.

    Args:
        recipe: the whole recipe.
        force: use a reward model even if its readiness report says no-go.
    """

    name = "ppo"
    record_type = Prompt

    def __init__(self, recipe: PpoRecipe, *, force: bool = False) -> None:
        super().__init__(recipe)
        self._force = force
        self.answer_tokens = recipe.rollout.max_new_tokens

    def require(self, display: Display) -> list[str]:
        """Find the rewards, and refuse those that are not fit for PPO."""
        return require_rewards(self.recipe, display, force=self._force)

    def functions(self) -> Sequence[UserFunction]:
        """The reward functions. They may change on a resume, so that one that failed can be corrected."""
        return reward_functions(self.recipe)

    def load(self, section: ModelSection) -> LoadedPolicy:
        """The policy with its critic, and the reference beside it on the same weights."""
        loaded = super().load(section)
        policy = Policy(loaded, self.recipe, with_critic=algorithm_of(self.recipe).has_critic)
        return LoadedPolicy(**vars(loaded), policy=policy)

    def guards(self) -> Sequence[Limit]:
        """See docs/ppo.md."""
        found = self.recipe.guards
        return (
            Limit("kl", "kl_k3", found.kl, "the policy has moved far from its reference"),
            Limit(
                "entropy", "entropy", found.entropy, "the policy generates nearly the same text every time", below=True
            ),
            Limit("degenerate", "degenerate", found.degenerate, "answers are blank, stuck or looping", from_start=True),
            Limit("value_loss", "value_loss", found.value_loss, "the critic no longer predicts the returns"),
            Limit("reward_spread", "reward_std", found.reward_spread, "all answers get the same reward", below=True),
            Limit("reward_clipped", "reward_clipped", found.reward_clipped, "reward.clip is too small for the scores"),
            Limit(
                "proxy_gap",
                "proxy_gap",
                found.proxy_gap,
                "the reward rises, but what it stands for falls",
                heldout=True,
            ),
            Limit("kl_negative", "kl_k1", _NEGATIVE_KL, "estimates of the KL should not stay negative", below=True),
        )

    def start(self, session: Session[PpoRecipe]) -> PpoObjective:
        """Load the rewards."""
        loaded = session.loaded
        assert isinstance(loaded, LoadedPolicy)  # noqa: S101 - `load` returned it
        return PpoObjective(session, loaded.policy, load_rewards(self.recipe, loaded, session.display))


class PpoObjective(Objective[PpoRecipe]):
    """Updates of a policy and its critic: each generates answers, scores them, and takes optimiser steps on them.

    Args:
        session: the opened run.
        policy: the policy to train.
        rewards: the rewards to optimise.

    Attributes:
        policy, rewards: see above.
    """

    def __init__(self, session: Session[PpoRecipe], policy: Policy, rewards: Rewards) -> None:
        super().__init__(session)
        recipe = session.recipe
        self.policy = policy
        self.rewards = rewards
        self._heldout = HeldoutAnswers(session, policy, rewards)
        self.before: Before = self._heldout.before
        self._log = RolloutLog(session)
        self._kl = kl.KlController(recipe.kl.coefficient, recipe.kl.controller, recipe.kl.target, recipe.kl.horizon)
        first_ratio = FirstRatio(session.processes, enabled=recipe.training.self_checks)
        self._parts = Components(session, policy, rewards, algorithm_of(recipe), self._kl, first_ratio)
        self._progress = Progress()
        self._update: Update | None = None
        self._details = Details()

    def parameters(self) -> dict[str, nn.Parameter]:
        """The policy's weights and the critic's."""
        return self.policy.parameters()

    def learning_rate(self, parameter: str) -> float | None:
        """The critic has its own learning rate."""
        return self._session.recipe.ppo.critic_learning_rate if is_critic(parameter) else None

    def loss(self, model: nn.Module, batch: PackedBatch) -> Sums:
        """The loss of the update in progress: see Update.loss."""
        assert self._update is not None  # noqa: S101 - optimiser steps are taken within an update
        return self._update.loss(model, batch)

    # --- One update --------------------------------------------------------------------------------------------------

    def step(self, steps: Steps, trees: Sequence[TokenTree]) -> dict[str, float]:
        """Do one update on these prompts; one that was interrupted continues from its checkpoint."""
        self._update = update = Update(steps.number, self._progress, self._parts)
        metrics = update.run(steps, trees)
        rollouts = self._progress.rollouts
        assert rollouts is not None  # noqa: S101
        self._details = _shown(rollouts, self._kl.coefficient, self._log.record(rollouts, steps.number + 1))
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
        """Hashes of the reward models and the judge, as they were loaded."""
        return {**self.rewards.fingerprints(), **self._heldout.fingerprints()}

    def load_state(self, state: State) -> None:
        """Restore a value of `state`.

        Raises:
            CheckpointError: files of a reward model or the judge have changed since the run began.
        """
        json = state.json
        now = self._fingerprints()
        if changed := [name for name in now if json["weights"].get(name) != now[name]]:
            raise CheckpointError(
                f"--resume: files of {listing(changed)} have changed since this run began",
                "Restore the files, or start a run under another name.",
            )
        self._kl.coefficient = json["kl_coefficient"]
        self.rewards.load_state(json["rewards"])
        self._parts.first_ratio.done |= json["checked"]
        self._progress = Progress.from_state(state)

    def rolled_back(self) -> dict[str, float]:
        """Raise the KL coefficient from now on."""
        self._kl.coefficient *= self._session.recipe.guards.kl_factor
        return {"kl_coefficient": self._kl.coefficient} if self._kl.coefficient else {}

    # --- Held-out answers --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Answers to held-out prompts, scored: see HeldoutAnswers."""
        return self._heldout.evaluate()

    def step_details(self) -> Details:
        """Reward, score, length and KL of each answer of the last update, and the answers that are recorded."""
        return self._details

    def heldout_details(self) -> Details:
        """Score, judge, length and KL of each held-out answer."""
        return self._heldout.details

    def finish(self) -> dict[str, JSON]:
        """Held-out answers before and after."""
        return self._heldout.finish()


def _shown(rollouts: Rollouts, coefficient: float, rows: Table) -> Details:
    """What trackers show of an update.

    Args:
        coefficient: of the KL penalty, with which the rewards were shaped.
        rows: the recorded answers.
    """
    divergence = padded(rollouts.kl, rollouts.lengths)[0].sum(1)
    values = {
        "score": rollouts.scored.proxy.tolist(),
        "reward": (rollouts.scored.shaped - coefficient * divergence).tolist(),
        "response_tokens": rollouts.lengths.tolist(),
        "kl_sequence": divergence.tolist(),
    }
    return Details(values, rows)
