"""Several models on one set of frozen weights: each is an adapter, and one adapter is active at a time.

PPO needs four models: the policy, its reference, a critic and a reward model. Only their adapters and heads differ; the
base model is in memory once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prefine.data.tokens.trees import PackedBatch
from prefine.errors import ModelError
from prefine.models.forward import fused
from prefine.models.forward.packed import PackedModel, PackedScorer, embedding_rows, evaluating
from prefine.models.loading.adapter_settings import read_settings
from prefine.models.loading.heads import IN_ADAPTER
from prefine.models.loading.load import LoadedModel, load_tokenizer
from prefine.models.loading.location import ADAPTER_WEIGHTS, Location, one_line
from prefine.models.scoring.packed_scorer import PackedReward, read_scale
from prefine.models.scoring.scorer import ScoreScale
from prefine.recipe.sections import ModelSection

# peft's name for the adapter that a model was loaded or made with: the policy.
POLICY = "default"


@contextmanager
def using_adapter(model: nn.Module, name: str | None) -> Iterator[None]:
    """Inside, only the adapter of this name is active; with None, no adapter is.

    peft's own switches also change which parameters have gradients; this one does not.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)  # low-rank layers, and modules trained whole beside them
    layers: list[Any] = [module for module in model.modules() if isinstance(module, kinds)]
    before = [(layer._disable_adapters, layer._active_adapter) for layer in layers]
    for layer in layers:
        layer._disable_adapters = name is None
        layer._active_adapter = [name] if name is not None else layer._active_adapter
    try:
        yield
    finally:
        for layer, (off, active) in zip(layers, before, strict=True):
            layer._disable_adapters, layer._active_adapter = off, active


def has_adapter(model: nn.Module) -> bool:
    """Whether the model is peft's, so that further adapters can be added."""
    from peft import PeftModel

    return isinstance(model, PeftModel)


@torch.no_grad()
def add_copy(model: Any, name: str, *, learns: bool = False) -> dict[str, nn.Parameter]:
    """Add an adapter with the current weights of the policy's; returns its parameters by name.

    Args:
        learns: whether the copy has gradients. Parameters that had them keep them.
    """
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.add_adapter(name, model.peft_config[POLICY])
    named = dict(model.named_parameters())
    added = {key: parameter for key, parameter in named.items() if name in key.split(".")}
    for key, parameter in added.items():
        parameter.copy_(named[".".join(POLICY if part == name else part for part in key.split("."))])
    _only_learn(model, [*learned, *(added.values() if learns else ())])
    return added


def _only_learn(model: nn.Module, parameters: list[nn.Parameter]) -> None:
    model.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)


class SharedScorer(PackedScorer):
    """A reward model that is an adapter on another model's weights, with its own score head.

    Args:
        host: the model whose weights it shares.
        adapter: the adapter's name there.
        head: (k, H) fp32 weights of its score head.
    """

    def __init__(self, host: PackedModel, adapter: str, head: Tensor) -> None:
        super().__init__(host.model, host.compute_dtype, host.path)
        self._adapter = adapter
        self._head = nn.Linear(head.shape[1], head.shape[0], bias=False, device=head.device)
        self._head.weight = nn.Parameter(head, requires_grad=False)

    @property
    def score_head(self) -> nn.Linear:
        """See PackedScorer."""
        return self._head

    def train(self, mode: bool = True) -> SharedScorer:
        """Sets its own flag only: the shared weights belong to the host."""
        self.training = mode
        return self

    def forward(self, batch: PackedBatch) -> Tensor:
        """(S, k) scores, computed in eval mode whatever the host's mode."""
        with evaluating(self.model), using_adapter(self.model, self._adapter):
            return super().forward(batch)


def shares_base(policy: LoadedModel, location: Location, scale: ScoreScale | None, section: ModelSection) -> str | None:
    """Why a reward model cannot share a policy's weights; None if it can."""
    if location.adapter is None or scale is None:
        return "it is a whole model, not an adapter of a reward run"
    if not has_adapter(policy.packed.model):
        return "the policy trains all its weights, so that its base does not stay as the reward model knew it"
    if location.base_sha256 is None or location.base_sha256 != policy.base_sha256:
        return "it was trained on another base model"
    if scale.quantization != section.quantization:
        return f"it was trained on {scale.quantization} weights, the policy's are {section.quantization}"
    dtype = str(policy.packed.compute_dtype).removeprefix("torch.")
    if scale.compute_dtype not in (None, dtype):
        return f"it computes in {scale.compute_dtype}, the policy in {dtype}"
    return None


def join_reward(policy: LoadedModel, location: Location, name: str) -> PackedReward:
    """Add a reward run's adapter to the policy's model under the given name. `shares_base` must have returned None.

    Raises:
        ModelError: its files cannot be read.
    """
    from peft import set_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = location.adapter
    assert folder is not None  # noqa: S101
    model: Any = policy.packed.model
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        saved = load_file(folder / ADAPTER_WEIGHTS)
        head = saved.pop(IN_ADAPTER).to(policy.packed.device, torch.float32)
        settings = read_settings(folder, model.get_base_model())
        settings.base_model_name_or_path = location.base  # its file has the path from its own folder
        settings.task_type, settings.modules_to_save, settings.inference_mode = "CAUSAL_LM", None, True
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{str(folder / ADAPTER_WEIGHTS)!r} is damaged, or has no score head ({one_line(error)})",
            "Train the reward model again, or bring the file back from a copy.",
            field="reward.name",
        ) from error
    model.add_adapter(name, settings)
    outcome = set_peft_model_state_dict(model, saved, adapter_name=name)
    _require_complete(model, name, saved, outcome, folder)
    _only_learn(model, learned)
    fused.install(model)
    scorer = SharedScorer(policy.packed, name, head)
    template = load_tokenizer(location, ModelSection(name=location.name))
    template.require_rows(embedding_rows(policy.packed.causal))
    loaded = replace(policy, packed=scorer, template=template, location=location)
    return PackedReward(loaded, read_scale(folder))


def _require_complete(model: Any, name: str, saved: dict[str, Tensor], outcome: Any, folder: Path) -> None:
    from peft import get_peft_model_state_dict

    held = set(get_peft_model_state_dict(model, adapter_name=name))
    apart = sorted(set(saved) ^ held) + sorted(outcome.unexpected_keys)
    if apart:
        raise ModelError(
            f"{len(apart)} weights of the adapter {str(folder)!r} and its base model do not match ({apart[0]}, …)",
            "Train the reward model again, on the base that the policy is on.",
            field="reward.name",
        )
