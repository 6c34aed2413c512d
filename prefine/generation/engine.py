"""Picks a model's writer. No other module knows both kinds."""

from __future__ import annotations

from typing import Any

from prefine.generation.padded_writer import PaddedWriter
from prefine.generation.slot_writer import SlotWriter
from prefine.generation.writer import Writer
from prefine.models.forward.fused import WeightCache
from prefine.models.forward.packed import PackedModel


def writer_for(
    model: PackedModel,
    tokenizer: Any,
    slots: int,
    *,
    prefix_tokens: int = 0,
    prefill_tokens: int | None = None,
    kept: WeightCache | None = None,
) -> Writer:
    """A model's writer: in slots, or in padded batches if the model does not take packed rows.

    Both use the same settings and random numbers and give the same results. Padded batches compute every prompt as a
    whole and keep nothing of it, so prefix_tokens and prefill_tokens have no effect. See SlotWriter for all arguments.
    """
    if model.path.packed and model.path.decodes and model.lengths is None:
        return SlotWriter(
            model, tokenizer, slots, prefix_tokens=prefix_tokens, prefill_tokens=prefill_tokens, kept=kept
        )
    return PaddedWriter(model, tokenizer, slots if model.lengths is None else 1, kept)
