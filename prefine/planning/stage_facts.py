"""What a recipe means for memory and time: the models that a stage holds, what it trains, and how its forward runs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from prefine.errors import RecipeError, about
from prefine.planning.activations import Forward, Head, Kernel
from prefine.planning.architecture import Architecture, LinearShape
from prefine.planning.machine import Machine
from prefine.planning.model_facts import STAGE, AdapterFacts, ModelFacts
from prefine.planning.weights import ITEM_BYTES
from prefine.recipe.dpo import DpoRecipe
from prefine.recipe.kto import KtoRecipe
from prefine.recipe.registry import RECIPES
from prefine.recipe.reward import RewardRecipe
from prefine.recipe.rl import PpoRecipe
from prefine.recipe.stage import StageRecipe, WritingRecipe
from prefine.recipe.steps import total_steps

_FUNCTION = re.compile(r"[\w.]+:\w+")
_REPORT_SLOTS = 32


@dataclass(frozen=True)
class TrainedWeights:
    """What a stage trains.

    Attributes:
        method: sft, reward, dpo, ppo, …
        recipe: its recipe.
        model: what it begins with.
        rewards: the reward models that it loads; functions take no memory.
        machine: where it runs.
        rows: training rows; None if not known.
    """

    method: str
    recipe: StageRecipe
    model: ModelFacts
    rewards: tuple[ModelFacts, ...]
    machine: Machine
    rows: int | None = None

    @cached_property
    def shapes(self) -> Architecture:
        """The model's shapes."""
        return self.model.architecture

    @property
    def rl(self) -> PpoRecipe | None:
        """The recipe, if answers are generated to learn from."""
        return self.recipe if isinstance(self.recipe, PpoRecipe) else None

    @property
    def adapter(self) -> AdapterFacts | None:
        """The adapter that is trained: the model's own, else the recipe's."""
        if self.model.adapter is not None:
            return self.model.adapter
        lora = self.recipe.lora
        if lora is None:
            return None
        rank = 2 * lora.r if self.on_principal else lora.r
        return AdapterFacts(rank, lora.targets if isinstance(lora.targets, str) else tuple(lora.targets))

    @property
    def on_principal(self) -> bool:
        """Whether a new adapter starts on principal components: it has twice the rank, and half of it holds the start.

        The other half alone learns, but both are parameters, with gradients and moments (models/loading/pissa.py).
        """
        return self.model.adapter is None and self.recipe.lora is not None and self.recipe.lora.on_principal

    @property
    def all_weights(self) -> bool:
        """Whether all weights are trained."""
        return self.adapter is None

    @property
    def rank(self) -> int:
        """Of the adapters; 0 without."""
        return 0 if self.adapter is None else self.adapter.rank

    @cached_property
    def targets(self) -> tuple[LinearShape, ...]:
        """Layers with adapters."""
        return () if self.adapter is None else self.shapes.targets(self.adapter.targets)

    @property
    def score_heads(self) -> int:
        """Outputs of a reward model; 0 for a language model."""
        return self.recipe.reward.heads if isinstance(self.recipe, RewardRecipe) else 0

    @property
    def base_parameters(self) -> int:
        """Weights without adapters; a reward model has a score head instead of its output layer."""
        return self.shapes.parameters_with(self.score_heads)

    @property
    def own_adapter(self) -> int:
        """Weights of one adapter."""
        return sum(self.rank * (each.inputs + each.outputs) for each in self.targets)

    @property
    def passes(self) -> int:
        """Trunks in a forward: two for a critic with an adapter of its own."""
        return 2 if self.rl is not None and self.rl.advantage == "gae" and self.rl.ppo.critic == "adapter" else 1

    @property
    def adapter_parameters(self) -> int:
        """Weights of all trained adapters."""
        return self.own_adapter * self.passes

    @property
    def trainable(self) -> int:
        """Weights that are trained."""
        head = self.score_heads * self.shapes.hidden
        if self.rl is not None and self.rl.advantage == "gae":
            head += self.shapes.hidden + 1
        return (self.base_parameters if self.all_weights else self.adapter_parameters) + head


@dataclass(frozen=True)
class StageFacts(TrainedWeights):
    """A stage to be planned: what it trains, and how it runs."""

    @property
    def dtype(self) -> str:
        """The compute type."""
        return self.machine.dtype if self.recipe.model.dtype == "auto" else self.recipe.model.dtype

    @property
    def itemsize(self) -> int:
        """Bytes of a number of it."""
        return ITEM_BYTES[self.dtype]

    @property
    def quantization(self) -> str:
        """Of the frozen weights."""
        return self.recipe.model.quantization

    @property
    def head(self) -> Head:
        """What reads the hidden states."""
        return "score" if self.score_heads else "actor_critic" if self.rl is not None else "language"

    @property
    def forward(self) -> Forward:
        """How its forward runs."""
        padded = self.recipe.model.attn_implementation in ("sdpa", "eager")
        quantized = self.quantization != "none"
        return Forward(
            self.shapes,
            self.machine.device,
            self.itemsize,
            cast(Kernel, "padded" if padded else self.machine.kernel(self.dtype)),
            self.rank,
            self.targets,
            fused=not quantized,
            checkpointing=self.recipe.model.gradient_checkpointing,
            quantized=quantized,
        )

    @property
    def samples(self) -> int:
        """Answers to each prompt that the run generates."""
        return 0 if self.rl is None else self.rl.samples_per_prompt

    @property
    def answer_tokens(self) -> int:
        """Tokens of those, at most."""
        return 0 if self.rl is None else self.rl.rollout.max_new_tokens

    @property
    def rows_per_step(self) -> int:
        """Rows of an optimiser step; for PPO prompts of a minibatch."""
        size = self.recipe.training.batch_size
        size = size if self.rows is None else min(size, max(1, self.rows))
        return size if self.rl is None else -(-size // min(size, self.rl.ppo.minibatches))

    @property
    def steps(self) -> int | None:
        """Steps of the run; None if the number of rows is not known and the recipe does not limit them."""
        if self.rows is None:
            return self.recipe.training.max_steps
        return total_steps(self.rows, self.recipe.training)

    @property
    def has_reference(self) -> bool:
        """Whether log-probabilities of all rows under the reference are computed before the first step."""
        if isinstance(self.recipe, DpoRecipe):
            return self.recipe.dpo.loss != "simpo"
        return isinstance(self.recipe, KtoRecipe)

    @property
    def has_baseline(self) -> bool:
        """Whether each step measures KTO's KL baseline, on its prompts with the answers of others."""
        return isinstance(self.recipe, KtoRecipe) and self.recipe.kto.loss == "kto"

    @property
    def generates(self) -> bool:
        """Whether text is generated."""
        return self.rl is not None or (isinstance(self.recipe, WritingRecipe) and self.recipe.report.samples > 0)

    @property
    def generated(self) -> tuple[int, int]:
        """Sequences generated at once, and new tokens of each, where they need the most."""
        found = []
        if isinstance(self.recipe, WritingRecipe) and self.recipe.report.samples:
            found.append((min(_REPORT_SLOTS, self.recipe.report.samples), self.recipe.report.max_new_tokens))
        if self.rl is not None:
            asked = self.recipe.training.batch_size * self.samples
            found.append((min(self.rl.rollout.slots, asked), self.rl.rollout.max_new_tokens))
        return max(found, key=lambda each: each[0] * each[1])


def stage_facts(
    recipe: StageRecipe, method: str, parents: Mapping[str, ModelFacts], machine: Machine, rows: int | None = None
) -> StageFacts:
    """Find the models of a recipe.

    Args:
        parents: what other stages of a pipeline will leave, for the names stage:NAME.

    Raises:
        ModelError, RecipeError: a model cannot be found.
    """
    model = _found(recipe.model.name, parents) or ModelFacts.of(recipe.model.name, recipe.model.revision)
    rewards = []
    if isinstance(recipe, PpoRecipe):
        names = [recipe.reward.name, *(each.name for each in recipe.reward.more)]
        names += [recipe.reward.judge] if recipe.reward.judge else []
        for name in names:
            if not _is_function(name):
                with about("reward.name"):
                    rewards.append(_found(name, parents) or ModelFacts.of_reward(name))
    return StageFacts(method, recipe, model, tuple(rewards), machine, rows)


def _found(name: str, parents: Mapping[str, ModelFacts]) -> ModelFacts | None:
    """The model that a stage will leave; None for a name of another kind."""
    return parents.get(name.removeprefix(STAGE)) if name.startswith(STAGE) else None


def _is_function(name: str) -> bool:
    """Whether a reward's name is module:function."""
    return bool(_FUNCTION.fullmatch(name)) and not name.startswith((STAGE, "embedded:")) and not Path(name).exists()


def method_of(recipe: Any) -> str:
    """The method of a recipe, by its type.

    Raises:
        RecipeError: it is of none.
    """
    for method, kind in RECIPES.items():
        if type(recipe) is kind:
            return method
    raise RecipeError(f"{type(recipe).__name__} is not a recipe of a stage", f"There are {', '.join(RECIPES)}.")
