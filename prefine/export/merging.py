"""An adapter's deltas added to the weights they were trained on: in float32, rounded once."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from prefine.errors import ModelError
from prefine.models.loading.load import LoadedModel, load_model
from prefine.recipe.sections import ModelSection


@contextmanager
def peft_warnings_off() -> Iterator[None]:
    """Inside, peft does not warn of tied embeddings under an adapter: `merge` settles what it warns of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"peft\.")
        yield


@torch.no_grad()
def dense(quantised: LoadedModel, section: ModelSection, heads: int | None = None) -> LoadedModel:
    """A quantised model with whole float32 weights: those that its quantised ones stand for in every product.

    Merging into the quantised weights themselves would round small deltas off them; merging into those that the base
    had before would put the deltas on weights that training never saw.

    Args:
        quantised: loaded with an adapter, or without.
        section: loads the same model in float32 without quantisation.
        heads: see load_model.
    """
    whole = load_model(section, None, trainable=False, heads=heads)
    modules = dict(whole.packed.model.named_modules())
    for name, module in quantised.packed.model.named_modules():
        weight = dequantised(module)
        if weight is not None:
            modules[name].weight.copy_(weight)
    whole.packed.eval()
    return whole


def dequantised(module: nn.Module) -> Tensor | None:
    """The fp32 weight that a quantised layer of bitsandbytes computes with; None for any other module."""
    weight: Any = module._parameters.get("weight")  # peft's layers have a `weight` that is their base's
    if type(weight).__name__ == "Params4bit":
        import bitsandbytes

        found: Tensor = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
        return found.float()
    if type(weight).__name__ == "Int8Params":
        state: Any = module.state
        rows, scales = (weight.CB, weight.SCB) if weight.CB is not None else (weight.data, state.SCB)
        whole: Tensor = rows.float() * scales.float()[:, None] / 127
        return whole
    return None


@torch.no_grad()
def merge(model: Any, dtype: torch.dtype, name: str) -> Any:
    """transformers' model in `dtype`, with its adapter's deltas, if it has one, in its weights.

    Args:
        model: transformers' model or peft's around one, in float32; changed in place.
        dtype: the deltas are added in float32, and the sum is rounded to it.
        name: for errors.

    Raises:
        ModelError: a weight is not finite in that type.
    """
    if hasattr(model, "merge_and_unload"):
        _separate_shared(model)
        model = model.merge_and_unload()
    _record_ties(model)
    model = model.to(dtype)
    for key, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise ModelError(
                f"{name}: {key} is not finite in {str(dtype).removeprefix('torch.')}",
                "Choose --dtype float32 or bfloat16, which hold larger values than float16; if it is not finite there, "
                "the model itself is damaged.",
            )
    return model


def _separate_shared(model: nn.Module) -> None:
    """Give each layer under an adapter a weight of its own, so that a merge changes that layer alone.

    With tied embeddings, an adapter on the output head would else change the input embedding, too.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    owners = Counter(
        parameter.data_ptr()
        for module in model.modules()
        for parameter in module._parameters.values()
        if parameter is not None
    )
    for layer in [module for module in model.modules() if isinstance(module, BaseTunerLayer)]:
        base: Any = layer.get_base_layer()
        weight = getattr(base, "weight", None)
        if isinstance(weight, nn.Parameter) and owners[weight.data_ptr()] > 1:
            base.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)


def _record_ties(model: Any) -> None:
    """Say in the config whether input and output embeddings are one weight, as they are after a merge.

    Where the config calls them tied and they differ, a loader would tie them, and lose what was trained.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    configs = {id(each): each for each in (model.config, model.config.get_text_config())}.values()
    if head is None or not any(getattr(each, "tie_word_embeddings", False) for each in configs):
        return
    if torch.equal(embedding.weight, head.weight):
        head.weight = embedding.weight
        return
    for each in configs:
        each.tie_word_embeddings = False
    # transformers leaves what it takes for tied out of the files.
    model.all_tied_weights_keys = {}
