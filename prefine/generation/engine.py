"""Picks the way that a model generates text: the only module that knows both writers."""

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
    """The writer of a model: in slots, or in padded batches where it takes no packed rows.

    Both take the same settings and random numbers and give the same results. Padded batches compute every prompt whole
    and keep nothing of it, so that prefix_tokens and prefill_tokens mean nothing to them. See SlotWriter for all
    arguments.
    """
    if model.path.packed and model.path.decodes and model.lengths is None:
        return SlotWriter(
            model, tokenizer, slots, prefix_tokens=prefix_tokens, prefill_tokens=prefill_tokens, kept=kept
        )
    return PaddedWriter(model, tokenizer, slots if model.lengths is None else 1, kept)
