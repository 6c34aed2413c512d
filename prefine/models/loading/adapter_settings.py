"""Reads the settings of a saved adapter from any origin, and checks them before peft uses them."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from prefine.errors import ModelError
from prefine.models.loading.module_names import matching_names
from prefine.models.loading.weights import ADAPTER_CONFIG, ADAPTER_WEIGHTS, largest_dimension

_ALL_LINEAR = "all-linear"
_PLAIN_NAME = re.compile(r"[\w.-]+")
_MOST_LAYERS = 10_000


def module_names(base: nn.Module) -> list[str]:
    """Names of a model's own modules, without those that adapters added."""
    names = [name for name, _ in base.named_modules() if name]
    return [name for name in names if ".base_layer" not in name and ".lora_" not in name]


def read_settings(folder: Path, base: nn.Module) -> Any:
    """An adapter's PeftConfig, with expressions for modules replaced by the names that they match.

    Args:
        folder: the adapter's folder.
        base: the transformers model that it is for.

    Raises:
        ModelError: a rank larger than its weights; an expression that is invalid or takes too long.
    """
    from peft import PeftConfig

    settings: Any = PeftConfig.from_pretrained(folder)
    largest = largest_dimension(folder / ADAPTER_WEIGHTS)
    for field, rank in _ranks(settings):
        if isinstance(rank, int) and rank > largest:
            raise _refused(folder, field, rank, f"the largest dimension of its weights is {largest}")
    copies = sum(end - start for start, end in getattr(settings, "layer_replication", None) or ())
    if copies > _MOST_LAYERS:
        raise _refused(folder, "layer_replication", f"{copies} layers", f"{_MOST_LAYERS} is the most")
    names = module_names(base)
    for field in ("target_modules", "exclude_modules"):
        pattern = getattr(settings, field, None)
        if isinstance(pattern, str) and pattern != _ALL_LINEAR:
            setattr(settings, field, set(_matching(folder, field, pattern, pattern, names)) or None)
    for field, pattern, whole in _expressions(settings):
        if not _PLAIN_NAME.fullmatch(pattern):
            _matching(folder, field, pattern, whole, names)  # peft will match it again, which is then known to be quick
    return settings


def _ranks(settings: Any) -> Iterator[tuple[str, Any]]:
    yield "r", getattr(settings, "r", None)
    for name, rank in (getattr(settings, "rank_pattern", None) or {}).items():
        yield f"rank_pattern of {textwrap.shorten(name, 40)}", rank


def _expressions(settings: Any) -> Iterator[tuple[str, str, str]]:
    """Field, its value and the whole expression that peft builds from it."""
    for field in ("rank_pattern", "alpha_pattern"):
        for key in getattr(settings, field, None) or {}:
            yield field, key, rf"(.*\.)?({key})$"
    for name in getattr(settings, "modules_to_save", None) or ():
        yield "modules_to_save", name, rf"(^|.*\.){name}($|\..*)"
    layers = getattr(settings, "layers_pattern", None) or ()
    for name in [layers] if isinstance(layers, str) else layers:
        yield "layers_pattern", name, rf"(?:^|.*?\.){name}\.\d+\..*"


def _matching(folder: Path, field: str, said: str, pattern: str, names: list[str]) -> list[str]:
    try:
        return matching_names(pattern, names)
    except ValueError as error:
        raise _refused(folder, field, repr(said), str(error)) from None


def _refused(folder: Path, field: str, value: object, why: str) -> ModelError:
    shown = textwrap.shorten(str(value), 80, placeholder="…")
    return ModelError(
        f"the adapter {str(folder)!r}: {field} is {shown} in its {ADAPTER_CONFIG}, and {why}",
        "Download the adapter again from its source, or correct that file.",
        field="model.name",
    )
