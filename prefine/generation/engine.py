"""Picks the way that a model generates text: the only module that knows both writers."""

from __future__ import annotations

from typing import Any

from prefine.generation.padded_writer import PaddedWriter
from prefine.generation.slot_writer import SlotWriter
from prefine.generation.writer import Writer
from prefine.models.forward.packed import PackedModel


def writer_for(model: PackedModel, tokenizer: Any, slots: int) -> Writer:
    """The writer of a model: in slots, or in padded batches where it takes no packed rows.

    Both take the same settings and random numbers and give the same results.
    """
    if model.path.packed and model.path.decodes and model.lengths is None:
        return SlotWriter(model, tokenizer, slots)
    return PaddedWriter(model, tokenizer, slots if model.lengths is None else 1)
