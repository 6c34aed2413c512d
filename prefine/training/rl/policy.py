"""The policy that reinforcement learning trains, its critic and its reference, on one set of weights where possible."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from prefine.data.tokens.trees import PackedBatch
from prefine.errors import ModelError, RecipeError
from prefine.models.actor_critic import ActorCritic, ValueHead
from prefine.models.forward.packed import LanguageHead, PackedModel
from prefine.models.loading.load import LoadedModel
from prefine.models.shared_base import add_copy, has_adapter
from prefine.recipe.rl import PpoRecipe

REFERENCE, CRITIC = "reference", "critic"
_VALUE_HEAD = "value_head."


class Policy:
    """A loaded model as the policy, with its critic and its reference.

    The reference is the policy as it was loaded: the base model if its adapter is new, otherwise a frozen copy of that
    adapter, or of all weights if the policy has no adapter.

    Args:
        loaded: the model; its `packed` gets the heads of policy and critic.
        recipe: the run's.
        with_critic: whether there is a critic.

    Attributes:
        model: the module that is trained, policy and critic; see ActorCritic for its outputs.

    Raises:
        ModelError: a critic cannot read the model's hidden states.
        RecipeError: the rows are longer than the model's context; a critic's adapter without lora.
    """

    def __init__(self, loaded: LoadedModel, recipe: PpoRecipe, *, with_critic: bool) -> None:
        _require_context(loaded, recipe)
        if not loaded.packed.path.hidden_states:
            raise ModelError(
                f"{recipe.model.name!r} is of an architecture whose hidden states a critic cannot read",
                "Use sft or dpo for it, or a model of another architecture.",
                field="model.name",
            )
        self._loaded = loaded
        self.model = loaded.packed
        self._reference = self._reference_model()
        self._reference_adapter = None if loaded.location.adapter is None else REFERENCE
        critic = recipe.ppo.critic if with_critic else None
        if critic == "adapter":
            if not has_adapter(loaded.packed.model):
                raise RecipeError("ppo.critic: adapter needs lora, but the recipe trains all weights", "Set shared.")
            add_copy(loaded.packed.model, CRITIC, learns=True)
        for module in loaded.packed.model.modules():  # dropout would make every ratio pi / pi_old noisy
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        self._language = LanguageHead(recipe.rollout.temperature)
        self._value = None if critic is None else ValueHead(self.model, CRITIC if critic == "adapter" else None)
        self.model.head = ActorCritic(self._language, self._value)

    def _reference_model(self) -> PackedModel:
        """Copy the whole model if it has no adapter; if it was loaded with one, add a copy of that adapter."""
        if not has_adapter(self.model.model):
            return copy.deepcopy(self.model).requires_grad_(False)
        if self._loaded.location.adapter is not None:
            add_copy(self.model.model, REFERENCE)
        return self.model

    @property
    def has_critic(self) -> bool:
        """Whether there is a critic."""
        return self._value is not None

    def logprobs(self, batch: PackedBatch) -> Tensor:
        """(R,) fp32 log-probabilities of a batch's targets under the policy."""
        found: Tensor = self.model(batch, head=self._language)
        return found

    def reference_logprobs(self, batch: PackedBatch) -> Tensor:
        """(R,) fp32 log-probabilities of a batch's targets under the reference."""
        found: Tensor = self._reference(batch, head=self._language, adapter=self._reference_adapter)
        return found

    def parameters(self) -> dict[str, nn.Parameter]:
        """Trainable parameters by name: the policy's and the critic's."""
        head = None if self._value is None else self._value.linear
        named = {} if head is None else {f"{_VALUE_HEAD}{name}": p for name, p in head.named_parameters()}
        return {**self._loaded.trainable(), **named}

    def critic_parameters(self) -> list[str]:
        """Names of the parameters that only the critic has."""
        return [name for name in self.parameters() if is_critic(name)]


def is_critic(parameter: str) -> bool:
    """Whether a parameter of this name is the critic's own."""
    return parameter.startswith(_VALUE_HEAD) or CRITIC in parameter.split(".")


def _require_context(loaded: LoadedModel, recipe: PpoRecipe) -> None:
    context = getattr(loaded.packed.causal.config.get_text_config(), "max_position_embeddings", None)
    if context is not None and recipe.data.max_length_tokens > context:
        raise RecipeError(
            f"data.max_length_tokens is {recipe.data.max_length_tokens}, but the context of {recipe.model.name} is "
            f"{context} tokens",
            f"Set it to at most {context}: prompt and answer together.",
        )
