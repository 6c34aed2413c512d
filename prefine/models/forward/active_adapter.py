"""Chooses which adapter of a peft model is active."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

# peft's name for the adapter that a model was loaded or made with. It is active outside `using_adapter`.
OWN_ADAPTER = "default"


@contextmanager
def using_adapter(model: nn.Module, name: str | None) -> Iterator[None]:
    """Inside, only the adapter of this name is active; with None, no adapter.

    peft's own switches also change which parameters have gradients; this one does not.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)  # low-rank layers, and modules that are trained as a whole
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
