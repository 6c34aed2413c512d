"""How many tokens a server's memory holds: of sequences, which keep keys and values until their answers have ended, and
of answers that are scored at once."""

from __future__ import annotations

from typing import Any

from prefine.generation.answers import context_of
from prefine.models.forward.packed import PackedModel
from prefine.models.loading.device import device_report

# Of the memory that is free: for keys and values, and for scores. The rest is for what generation computes, and for
# other programs.
_SHARE = 0.75
_SCORING_SHARE = 0.15
# Rows of a token in one layer: hidden states and their projections, a gated MLP's, and scores with their bias and their
# probabilities, for as many queries as are computed at once; see prefine.models.forward.blockwise.
_HIDDEN_ROWS, _MLP_ROWS, _SCORE_ROWS, _QUERIES = 8, 3, 3, 512
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


def scoring_room(network: Any) -> int:
    """Tokens of prompts and answers that a reward model may score at once, by the memory that is free now.

    Args:
        network: transformers' model; layers are computed one after the other, and nothing is kept of them.
    """
    config = network.config.get_text_config()
    hidden = config.hidden_size
    heads, inner = (getattr(config, name, None) or 0 for name in ("num_attention_heads", "intermediate_size"))
    rows = _HIDDEN_ROWS * hidden + _MLP_ROWS * (inner or 4 * hidden) + _SCORE_ROWS * _QUERIES * heads
    free = _SCORING_SHARE * device_report(network.device)["memory_free_gb"] * 1e9
    return max(_STEP, int(free / (rows * network.dtype.itemsize)))
