"""PPO, RLOO and GRPO: each update collects rollouts, shapes rewards, estimates advantages and takes clipped steps."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from prefine.data.batch import PackedBatch, TokenTree
from prefine.data.template import ChatTemplate
from prefine.errors import CheckpointError, ModelError, RecipeError
from prefine.evaluation.wording import listing
from prefine.models.actor_critic import ActorCritic
from prefine.models.load import LoadedModel, load_model
from prefine.models.shared_base import add_copy, has_adapter, using_adapter
from prefine.objectives import kl, ppo
from prefine.recipe import GuardSection, LoraSection, ModelSection
from prefine.recipe_ppo import PpoRecipe
from prefine.records import Prompt
from prefine.training.checks import check_first_ratio, require
from prefine.training.contract import Loss, State, Steps, Sums
from prefine.training.display import Display
from prefine.training.guards import Rule
from prefine.training.heldout_answers import HeldoutAnswers
from prefine.training.ppo_metrics import extremes, update_metrics
from prefine.training.rewards import Scored, load_rewards, require_rewards
from prefine.training.rollout import (
    Rollouts,
    Timings,
    answered,
    measure,
    minibatches,
    repeatability,
    seed_of,
    write_answers,
)
from prefine.training.session import run_stage
from prefine.training.stage import Session, Stage
from prefine.training.targets import estimate, trained_places, without_signal

_REFERENCE, _CRITIC = "reference", "critic"
# Nothing a recipe changes: sampling and training then see different policies, which is a fault and no taste.
_NEGATIVE_KL = GuardSection(limit=-0.05, patience=5, action="warn")


def run_ppo(recipe: PpoRecipe, resume: bool, console: Console, *, force: bool = False) -> Path:
    """Optimise a reward as the recipe says; returns the run's folder.

    Args:
        force: go on with a reward model whose readiness report says no-go.

    Raises:
        PrefineError: whatever cannot go on; what was saved before can be resumed.
    """
    return run_stage(PpoStage(recipe, force=force), recipe, resume, console)


class PpoStage(Stage):
    """Learns to write what is rewarded."""

    name = "ppo"
    kind = Prompt

    def __init__(self, recipe: PpoRecipe, *, force: bool = False) -> None:
        self._recipe = recipe
        self._force = force
        self.answer_tokens = recipe.rollout.max_new_tokens
        self._kl = kl.KlController(recipe.kl.coefficient, recipe.kl.controller, recipe.kl.target, recipe.kl.horizon)
        self._rollouts: Rollouts | None = None
        self._scored: Scored | None = None
        self._inner = 0
        self._rows: list[dict[str, float]] = []
        self._timings = Timings()
        self._ratios = (math.inf, -math.inf)
        self._checked = False
        self._repeated = 0.0
        self._forced: list[str] = []

    def require(self, display: Display) -> None:
        """Find the rewards, and refuse those that are not fit for PPO."""
        self._forced = require_rewards(self._recipe, display, force=self._force)

    def load(self, section: ModelSection, lora: LoraSection | None) -> LoadedModel:
        """The policy with its critic, and the reference beside it on the same weights."""
        loaded = load_model(section, lora)
        _require_room(loaded, self._recipe)
        if loaded.packed.whole_logits and not loaded.packed.packed:
            raise ModelError(
                f"{section.name!r} is of an architecture whose hidden states a critic cannot read",
                "Use sft or dpo for it, or a model of another architecture.",
                field="model.name",
            )
        self._make_reference(loaded)
        critic = self._recipe.ppo.critic if self._recipe.advantage == "gae" else None
        if critic == "adapter":
            if not has_adapter(loaded.packed.model):
                raise RecipeError("ppo.critic: adapter needs lora, and the recipe trains all weights", "Set shared.")
            add_copy(loaded.packed.model, _CRITIC, learns=True)
        for module in loaded.packed.model.modules():  # with dropout the policy is no function, and ratios are noise
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        self._policy = ActorCritic(loaded.packed, self._recipe.rollout.temperature, critic)
        loaded.packed = self._policy
        return loaded

    def _make_reference(self, loaded: LoadedModel) -> None:
        """The policy as it was loaded: the base where its adapter is fresh, else a frozen copy of that adapter."""
        self._frozen_twin: ActorCritic | None = None
        if not has_adapter(loaded.packed.model):
            twin = copy.deepcopy(loaded.packed).requires_grad_(False)
            self._frozen_twin = ActorCritic(twin, self._recipe.rollout.temperature, None)
        elif loaded.location.adapter is not None:
            add_copy(loaded.packed.model, _REFERENCE)
        self._reference_adapter = None if loaded.location.adapter is None else _REFERENCE

    def parameters(self, loaded: LoadedModel) -> dict[str, nn.Parameter]:
        """The policy's weights and the critic's."""
        head = self._policy.value_head
        named = {} if head is None else {f"value_head.{name}": p for name, p in head.named_parameters()}
        return {**loaded.trainable(), **named}

    def learning_rate(self, parameter: str) -> float | None:
        """The critic has its own."""
        critic = parameter.startswith("value_head.") or _CRITIC in parameter.split(".")
        return self._recipe.ppo.critic_learning_rate if critic else None

    def guards(self) -> Sequence[Rule]:
        """See docs/ppo.md."""
        found = self._recipe.guards
        return (
            Rule("kl", "kl_k3", found.kl, "the policy has gone far from what it was"),
            Rule("entropy", "entropy", found.entropy, "the policy writes the same thing over and over", below=True),
            Rule("degenerate", "degenerate", found.degenerate, "answers are blank, stuck or loop", from_start=True),
            Rule("value_loss", "value_loss", found.value_loss, "the critic no longer follows"),
            Rule("reward_spread", "reward_std", found.reward_spread, "all answers are rewarded alike", below=True),
            Rule("reward_clipped", "reward_clipped", found.reward_clipped, "reward.clip is too small for the scores"),
            Rule("proxy_gap", "proxy_gap", found.proxy_gap, "the reward rises, what it stands for falls", heldout=True),
            Rule("kl_negative", "kl_k1", _NEGATIVE_KL, "estimates of the KL should not stay negative", below=True),
        )

    def to_tree(self, template: ChatTemplate, record: Prompt) -> TokenTree:
        """A prompt without answers."""
        return TokenTree(template.prompt_ids(record.prompt), (), ())

    def begin(self, session: Session) -> Loss:
        """Load the rewards, and give the loss, a mean over tokens."""
        self._session = session
        session.override(*self._forced)
        self._rewards = load_rewards(self._recipe, session.loaded, session.display)
        self._heldout = HeldoutAnswers(session, self._policy, self._rewards, self._reference_logprobs)
        self.before = self._heldout.before
        return self._loss

    # --- One update --------------------------------------------------------------------------------------------------

    def step(self, steps: Steps, trees: Sequence[TokenTree]) -> dict[str, float]:
        """One update on these prompts, from where a checkpoint left it."""
        section = self._recipe.ppo
        update = steps.number
        if self._rollouts is None or self._scored is None:
            self._rollouts, self._scored = self._collect(trees, update)
        rollouts, scored = self._rollouts, self._scored
        self._targets = estimate(self._recipe, rollouts, scored, self._kl.coefficient)
        self._policy.head_only = self._policy.value_head is not None and update < section.value_warmup_updates
        trained = trained_places(self._recipe, scored)
        if not trained:
            self._session.display.say(
                f"update {update + 1}: no step, as each prompt's answers all have the same reward"
            )
        parts = min(section.minibatches, len(trained))
        while self._inner < section.epochs * parts:
            epoch, part = divmod(self._inner, parts)
            places = self._minibatches(trained, update, epoch)[part]
            with self._timings.of("train"):
                row = steps.optimise([rollouts.trees[place] for place in places], self._learning())
            self._ratios = extremes(steps.processes.gather(self._ratios))
            self._check_first_ratio()
            self._rows.append(row)
            self._inner += 1
            if section.max_kl is not None and row["approx_kl"] > section.max_kl:
                break
            if self._inner < section.epochs * parts:
                steps.safe_point()
        metrics = update_metrics(
            rollouts, scored, self._targets, self._rows, self._ratios, self._timings, self._kl.coefficient
        )
        siblings = self._recipe.samples_per_prompt
        compared = len(scored.shaped) if self._recipe.advantage == "gae" else siblings
        metrics |= self._rewards.metrics(rollouts.scores, scored, compared)
        if self._recipe.advantage != "gae":
            metrics["groups_without_signal"] = float(without_signal(self._recipe, scored).float().mean())
        self._keep_some(rollouts, scored, update + 1)
        self._kl.update(metrics["kl_k1"], len(rollouts.lengths))
        self._clear()
        return metrics

    def _clear(self) -> None:
        self._rollouts, self._scored, self._inner, self._rows = None, None, 0, []
        self._timings, self._ratios = Timings(), (math.inf, -math.inf)

    def _learning(self) -> list[str] | None:
        """What learns now: the critic alone while it warms up, else all."""
        if not self._policy.head_only:
            return None
        return [name for name in self.parameters(self._session.loaded) if self.learning_rate(name) is not None]

    def _minibatches(self, places: Sequence[int], update: int, epoch: int) -> list[list[int]]:
        """These places of an update's trees as the minibatches of one of its passes."""
        parts = minibatches(len(places), self._recipe.ppo.minibatches, self._seed, update, epoch)
        return [[places[place] for place in part] for part in parts]

    def _collect(self, prompts: Sequence[TokenTree], update: int) -> tuple[Rollouts, Scored]:
        """Answers to prompts, scored and measured; each process does its share and all get everything."""
        session, recipe, processes = self._session, self._recipe, self._session.processes
        mine = processes.share(range(len(prompts)))
        samples = recipe.samples_per_prompt
        own = [prompts[place] for place in mine]
        with self._timings.of("generate"):
            written = processes.all_or_raise(
                lambda: write_answers(
                    self._policy,
                    session.loaded.template,
                    recipe,
                    own,
                    lambda place, sample: seed_of(self._seed, update, own[place].row, sample),
                    samples,
                )
            )
        with self._timings.of("score"):
            asked = answered(written, session.prepared.train, [tree.row for tree in own])
            scores = processes.all_or_raise(lambda: self._rewards.score(asked))

        def share(values: Sequence[Any]) -> list[Any]:
            """Values of answers, `samples` a prompt, of all processes in the prompts' order."""
            chunks = {place: values[i * samples : (i + 1) * samples] for i, place in enumerate(mine)}
            return [value for place, chunk in sorted(processes.gather_by_row(chunks).items()) for value in chunk]

        answers = share([answer for tree in written.trees for answer in tree.answers])
        trees = tuple(
            TokenTree(prompt.prompt, tuple(answers[i * samples : (i + 1) * samples]), (None,) * samples, i, apart=True)
            for i, prompt in enumerate(prompts)
        )
        lengths, ended = torch.tensor(list(map(len, answers))), torch.tensor(share(written.ended))
        own_scores = {name: share(values) for name, values in scores.items()}
        scored = self._rewards.combined(own_scores, lengths, ended)
        with self._timings.of("measure"):
            measured = self._measure(trees, trained_places(recipe, scored), update)
        columns = {
            name: torch.cat([measured[place][name] for place in range(len(trees))])
            for name in ("logprobs", "reference", "entropy", "values")
        }
        rows, texts = tuple(prompt.row for prompt in prompts), tuple(share(written.texts))
        return Rollouts(trees, rows, texts, lengths, ended, own_scores, **columns), scored

    def _measure(self, trees: Sequence[TokenTree], trained: Sequence[int], update: int) -> dict[int, dict[str, Tensor]]:
        """As the first epoch will train on them: same minibatches, same microbatches; those left out by themselves."""
        processes = self._session.processes
        left_out = sorted(set(range(len(trees))) - set(trained))
        groups = [
            processes.share([trees[place] for place in part])
            for part in [*self._minibatches(trained, update, 0), left_out]
        ]
        if not self._checked:
            own = repeatability(self._policy, groups[0], self._max_tokens) if groups[0] else 0.0
            self._repeated = max(processes.gather(own))
        return processes.gather_by_row(measure(self._policy, self._reference_logprobs, groups, self._max_tokens))

    def _reference_logprobs(self, batch: PackedBatch) -> Tensor:
        if self._frozen_twin is not None:
            return self._frozen_twin.logprobs(batch)
        with using_adapter(self._policy.model, self._reference_adapter):
            return self._policy.logprobs(batch)

    def _loss(self, model: nn.Module, batch: PackedBatch) -> Sums:
        """Clipped policy loss, value loss, KL and entropy terms, summed over tokens."""
        rollouts, section = self._rollouts, self._recipe.ppo
        assert rollouts is not None  # noqa: S101
        places, device = rollouts.places(batch.answers_of_rows), batch.targets.device
        old, advantages = rollouts.logprobs[places].to(device), self._targets.advantages[places].to(device)
        self._policy.with_entropy = section.entropy_coefficient > 0
        out = model(batch)
        policy = ppo.policy_loss(out.logprobs, old, advantages, section.clip)
        terms = {"policy_loss": policy}
        policy_weight = 0.0 if self._policy.head_only else 1.0
        loss = policy.sum() * policy_weight
        if out.values is not None:
            known = rollouts.values[places].to(device), self._targets.returns[places].to(device)
            terms["value_loss"] = ppo.value_loss(out.values, *known, section.value_clip)
            loss = loss + section.value_coefficient * terms["value_loss"].sum()
        if self._recipe.advantage == "grpo":
            terms["kl_loss"] = kl.kl_loss(out.logprobs, old, rollouts.reference[places].to(device))
            loss = loss + self._kl.coefficient * terms["kl_loss"].sum()
        if out.entropy is not None:
            loss = loss - policy_weight * section.entropy_coefficient * out.entropy.sum()
        with torch.no_grad():
            terms["approx_kl"] = ppo.approximate_kl(out.logprobs, old)
            terms["clip_fraction"] = ppo.policy_clipped(out.logprobs, old, advantages, section.clip).float()
            if out.values is not None:
                terms["value_clip_fraction"] = ppo.value_clipped(out.values, *known, section.value_clip).float()
            ratio = torch.exp(out.logprobs - old)
            self._ratios = extremes([self._ratios, (float(ratio.min()), float(ratio.max()))])
        return Sums(loss, "tokens", {name: float(term.detach().sum()) for name, term in terms.items()})

    def _check_first_ratio(self) -> None:
        """Once a run, after its first minibatch."""
        if not self._checked and self._recipe.training.self_checks:
            apart = max(abs(ratio - 1) for ratio in self._ratios)
            self._session.checks += require([check_first_ratio(apart, self._repeated)])
        self._checked = True

    # --- What a checkpoint holds -------------------------------------------------------------------------------------

    def state(self) -> State:
        """The controller, statistics of rewards, and the update in progress."""
        rollouts = self._rollouts
        tensors = {} if rollouts is None else {"rollouts": rollouts.tensors()}
        json = {
            "kl_coefficient": self._kl.coefficient,
            "rewards": self._rewards.state(),
            "weights": self._fingerprints(),
            "checked": self._checked,
            "inner": self._inner,
            "rows": self._rows,
            "ratios": list(self._ratios),
            "seconds": self._timings.seconds,
            "rollouts": None if rollouts is None else rollouts.state(),
            "scored": None if self._scored is None else self._scored.state(),
        }
        return State(tensors, json)

    def _fingerprints(self) -> dict[str, str]:
        """Hashes of what a run depends on besides its policy, as they were when loaded."""
        return {**self._rewards.fingerprints(), **self._heldout.fingerprints()}

    def load_state(self, state: State) -> None:
        """Return to a state that `state` gave.

        Raises:
            CheckpointError: files of a reward model or judge are others than when the run began.
        """
        tensors, json = state
        now = self._fingerprints()
        if changed := [name for name in now if json["weights"].get(name) != now[name]]:
            raise CheckpointError(
                f"--resume: the files of {listing(changed)} are not what they were when this run began",
                "Bring the files back, or start a run of another name.",
            )
        self._kl.coefficient = json["kl_coefficient"]
        self._rewards.restore(json["rewards"])
        self._checked = self._checked or json["checked"]
        self._inner, self._rows = json["inner"], list(json["rows"])
        low, high = json["ratios"]
        self._ratios, self._timings = (low, high), Timings(dict(json["seconds"]))
        kept = json["rollouts"]
        self._rollouts = None if kept is None else Rollouts.restored(dict(tensors["rollouts"]), kept)
        self._scored = None if json["scored"] is None else Scored.restored(json["scored"])

    def rolled_back(self) -> dict[str, Any]:
        """Pull harder towards the reference from now on."""
        self._kl.coefficient *= self._recipe.guards.kl_factor
        return {"kl_coefficient": self._kl.coefficient} if self._kl.coefficient else {}

    # --- Looking at it -----------------------------------------------------------------------------------------------

    def _keep_some(self, rollouts: Rollouts, scored: Scored, step: int) -> None:
        """Some answers of this update, for the report."""
        every = self._recipe.training.sample_every_steps
        if every is None or step % every or not self._session.processes.is_main:
            return
        self._heldout.keep_rollouts(rollouts, scored, step)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Answers to held-out prompts, scored: see HeldoutAnswers."""
        return self._heldout.evaluate()

    def finish(self) -> dict[str, Any]:
        """Held-out answers before and after."""
        return self._heldout.finish()

    @property
    def _seed(self) -> int:
        return self._recipe.training.seed

    @property
    def _max_tokens(self) -> int:
        return self._recipe.training.max_tokens_per_microbatch


def _require_room(loaded: LoadedModel, recipe: PpoRecipe) -> None:
    context = getattr(loaded.packed.causal.config.get_text_config(), "max_position_embeddings", None)
    if context is not None and recipe.data.max_length_tokens > context:
        raise RecipeError(
            f"data.max_length_tokens is {recipe.data.max_length_tokens}, but the context of {recipe.model.name} is "
            f"{context} tokens",
            f"Set it to at most {context}: prompt and answer together.",
        )
