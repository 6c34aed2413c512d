"""How many tokens of sequences a server's memory holds: each keeps its keys and values until its answer has ended."""

from __future__ import annotations

from prefine.generation.answers import context_of
from prefine.models.forward.packed import PackedModel
from prefine.models.loading.device import device_report

# Of the memory that is free; the rest is for what is computed, and for other programs.
_SHARE = 0.75
# A writer's slots may grow beyond their longest sequence, by so much; see SlotForward.room.
_GROWTH = 9 / 8
_STEP = 32


def token_bytes(model: PackedModel) -> int:
    """Memory of one token's keys and values in all layers, by the model's config."""
    config = model.causal.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None)
    if not heads:  # no attention, nothing that grows with the sequence
        return 1
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    kept = getattr(config, "num_key_value_heads", None) or heads
    return int(2 * config.num_hidden_layers * kept * size * model.compute_dtype.itemsize)


def room_of(model: PackedModel, models: int, prefix_tokens: int) -> int:
    """Tokens that one model's running sequences may take at once, by the memory that is free now.

    Args:
        model: loaded.
        models: that share the memory.
        prefix_tokens: kept by each between requests.
    """
    free = _SHARE * device_report(model.device)["memory_free_gb"] * 1e9 / models
    return max(2 * _STEP, round(free / token_bytes(model)) - prefix_tokens)


def context_within(model: PackedModel, room: int, asked: int | None) -> int:
    """The longest sequence: the model's context, or less where the memory holds less or the server's user says so."""
    held = round(room / _GROWTH) - _STEP
    return min(context_of(model), max(1, held), *(() if asked is None else (asked,)))
