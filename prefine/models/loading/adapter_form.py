"""What kind of adapter a model has, in words."""

from __future__ import annotations

from typing import Any

from torch import nn

from prefine.models.forward.active_adapter import OWN_ADAPTER
from prefine.models.loading.pissa import holds_start


def adapter_form(model: nn.Module, *, fused: bool) -> str | None:
    """How a model's own adapter differs from plain LoRA; None for plain LoRA or no adapter.

    Args:
        fused: whether prefine's layers compute it.
    """
    settings: Any = getattr(model, "peft_config", {}).get(OWN_ADAPTER)
    if settings is None:
        return None
    found = []
    if holds_start(model):
        half = settings.r // 2
        found.append(f"PiSSA: starts on {half} principal components, saved as rank {settings.r} on the original base")
    if getattr(settings, "use_rslora", False):
        found.append("rank-stabilised scale")
    if getattr(settings, "use_dora", False):
        found.append("DoRA" if fused else "DoRA, computed by peft's own layers: slower, and rounded more in bfloat16")
    return "; ".join(found) or None


def trained_weights(model: nn.Module) -> int:
    """The number of a model's weights that learn: of an adapter that holds its start, without what is held."""
    learning = [(name, p.numel()) for name, p in model.named_parameters() if p.requires_grad]
    halved = ("lora_A", "lora_B") if holds_start(model) else ()
    return sum(count // 2 if any(part in halved for part in name.split(".")) else count for name, count in learning)
