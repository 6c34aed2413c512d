"""Several models on one set of frozen weights: each is an adapter, and one adapter is active at a time.

PPO needs four models: the policy, its reference, a critic and a reward model. Only their adapters and heads differ; the
base model is in memory once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prefine.data.tokens.template import ChatTemplate
from prefine.errors import ModelError
from prefine.models.forward import fused
from prefine.models.forward.active_adapter import OWN_ADAPTER
from prefine.models.forward.packed import ScoreHead, embedding_rows
from prefine.models.loading.adapter_settings import read_settings
from prefine.models.loading.heads import IN_ADAPTER
from prefine.models.loading.load import LoadedModel, load_model, load_tokenizer
from prefine.models.loading.location import ADAPTER_WEIGHTS, Location, base_hash, one_line
from prefine.models.loading.pissa import hold
from prefine.models.scoring.packed_scorer import PackedReward, read_scale
from prefine.models.scoring.scorer import ScoreScale
from prefine.recipe.sections import ModelSection

_REMEDY = "Train it again on this base model, or restore its files from a copy."


def has_adapter(model: nn.Module) -> bool:
    """Whether the model is peft's, so that further adapters can be added."""
    from peft import PeftModel

    return isinstance(model, PeftModel)


@torch.no_grad()
def add_copy(model: Any, name: str, *, learns: bool = False) -> dict[str, nn.Parameter]:
    """Add a copy of the policy's adapter; returns its parameters by name.

    Args:
        learns: whether the copy is trained. Other trainable parameters stay trainable.
    """
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.add_adapter(name, model.peft_config[OWN_ADAPTER])
    named = dict(model.named_parameters())
    added = {key: parameter for key, parameter in named.items() if name in key.split(".")}
    for key, parameter in added.items():
        parameter.copy_(named[".".join(OWN_ADAPTER if part == name else part for part in key.split("."))])
    _only_learn(model, [*learned, *(added.values() if learns else ())])
    if learns:
        hold(model, name)
    return added


def _only_learn(model: nn.Module, parameters: list[nn.Parameter]) -> None:
    model.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)


def shares_base(policy: LoadedModel, location: Location, scale: ScoreScale | None, section: ModelSection) -> str | None:
    """Why a reward model cannot share a policy's weights; None if it can."""
    if location.adapter is None or scale is None:
        return "it is a whole model, not an adapter of a reward run"
    if not has_adapter(policy.packed.model):
        return "the policy trains all its weights, so that its base will differ from the reward model's"
    if location.base_sha256 is None or location.base_sha256 != policy.base_sha256:
        return "it was trained on another base model"
    if scale.quantization != section.quantization:
        return f"it was trained on {scale.quantization} weights, but the policy's are {section.quantization}"
    dtype = str(policy.packed.compute_dtype).removeprefix("torch.")
    if scale.compute_dtype not in (None, dtype):
        return f"it computes in {scale.compute_dtype}, the policy in {dtype}"
    return None


def join_reward(policy: LoadedModel, location: Location, name: str) -> PackedReward:
    """Add a reward run's adapter to the policy's model under the given name. `shares_base` must have returned None.

    Raises:
        ModelError: its files cannot be read.
    """
    folder = location.adapter
    assert folder is not None  # noqa: S101
    saved = _saved_weights(folder, "reward.name", head=True)
    head = saved.pop(IN_ADAPTER).to(policy.packed.device, torch.float32)
    _add_saved(policy.packed.model, name, location, saved, "reward.name")
    linear = nn.Linear(head.shape[1], head.shape[0], bias=False, device=head.device)
    linear.weight = nn.Parameter(head, requires_grad=False)
    template = _own_template(policy, location, ModelSection(name=location.name))
    loaded = replace(policy, template=template, location=location)
    return PackedReward(loaded, read_scale(folder), head=ScoreHead(linear), adapter=name)


def load_host(locations: Sequence[Location], section: ModelSection) -> LoadedModel:
    """Load the model that the others join: an adapter if there is one, so that the base is ready for more.

    Args:
        locations: of language models on one base, at least one.
        section: how it is loaded; its name is replaced.

    Raises:
        ModelError: it cannot be loaded.
    """
    first = min(locations, key=lambda location: location.adapter is None)
    return load_model(section.model_copy(update={"name": first.name}), None, trainable=False)


def on_same_base(host: LoadedModel, location: Location, revision: str | None = None) -> bool:
    """Whether a located model has the base of a loaded one: by the hashes of the weights, or by name without hashes.

    Args:
        revision: of the located model's base at the hub.
    """
    known = location.base_sha256 if location.adapter is not None else base_hash(location.base, revision)
    return known == host.base_sha256 if known else location.base == host.location.base


def join_language(
    host: LoadedModel, location: Location, name: str, section: ModelSection
) -> tuple[LoadedModel, str | None]:
    """A language model on the host's base, and peft's name for its adapter; None for the base itself.

    Args:
        host: see `join_adapter`; it may be the model itself.
        location: of a model `on_same_base`.
        name: for the adapter, if one must be added.
        section: see `join_adapter`.

    Raises:
        ModelError: as `join_adapter`.
    """
    if location == host.location:
        return host, None if location.adapter is None else OWN_ADAPTER
    # A dot would divide the names of its parameters.
    adapter = None if location.adapter is None else name.replace(".", "_").replace("/", "_")
    return join_adapter(host, location, adapter, section), adapter


def join_adapter(host: LoadedModel, location: Location, name: str | None, section: ModelSection) -> LoadedModel:
    """Load a language model onto the base of another one: its adapter is added to the host, under the given name.

    The two must have the same base. `using_adapter` switches between them.

    Args:
        host: a model with an adapter (see `has_adapter`), or any where `name` is None.
        location: location of the added model.
        name: peft's name for its adapter; None if it is the base itself.
        section: how its tokenizer and chat template are loaded, as those of the host; its name is replaced.

    Raises:
        ModelError: its files cannot be read, or do not match the base.
    """
    if name is not None:
        assert location.adapter is not None  # noqa: S101
        saved = _saved_weights(location.adapter, "model.name", head=False)
        _add_saved(host.packed.model, name, location, saved, "model.name")
    return replace(host, template=_own_template(host, location, section), location=location)


def _own_template(host: LoadedModel, location: Location, section: ModelSection) -> ChatTemplate:
    """The tokenizer and chat template of a model that is added to another one."""
    template = load_tokenizer(location, section.model_copy(update={"name": location.name}))
    template.require_rows(embedding_rows(host.packed.causal))
    return template


def _saved_weights(folder: Path, field: str, *, head: bool) -> dict[str, Tensor]:
    """An adapter's weights by name, with or without a score head."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        saved = load_file(folder / ADAPTER_WEIGHTS)
        if head != (IN_ADAPTER in saved):
            raise KeyError(IN_ADAPTER)
    except (SafetensorError, OSError, KeyError) as error:
        what = "has no score head" if head else "is a reward model's"
        raise ModelError(
            f"{str(folder / ADAPTER_WEIGHTS)!r} is damaged, or {what} ({one_line(error)})", _REMEDY, field=field
        ) from error
    return saved


def _add_saved(model: Any, name: str, location: Location, saved: dict[str, Tensor], field: str) -> None:
    """Add a saved adapter to a model that has others; trainable parameters stay trainable."""
    from peft import set_peft_model_state_dict

    folder = location.adapter
    assert folder is not None  # noqa: S101
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        settings = read_settings(folder, model.get_base_model())
        settings.base_model_name_or_path = location.base  # its file has the path from its own folder
        if settings.is_prompt_learning:
            raise ValueError(f"it is of type {settings.peft_type.value}, which adds tokens")
        if field == "reward.name":
            settings.task_type, settings.modules_to_save = "CAUSAL_LM", None  # the score head is separate
        settings.inference_mode = True
        model.add_adapter(name, settings)
        outcome = set_peft_model_state_dict(model, saved, adapter_name=name)
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"the adapter {str(folder)!r} could not be put on its base model ({one_line(error)})", _REMEDY, field=field
        ) from error
    _require_complete(model, name, saved, outcome, folder, field)
    _only_learn(model, learned)
    fused.install(model)


def _require_complete(model: Any, name: str, saved: dict[str, Tensor], outcome: Any, folder: Path, field: str) -> None:
    from peft import get_peft_model_state_dict

    held = set(get_peft_model_state_dict(model, adapter_name=name))
    apart = sorted(set(saved) ^ held) + sorted(outcome.unexpected_keys)
    if apart:
        raise ModelError(
            f"{len(apart)} weights of the adapter {str(folder)!r} and its base model do not match ({apart[0]}, …)",
            _REMEDY,
            field=field,
        )
