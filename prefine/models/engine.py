"""Picks the way that a model generates text: the only module that knows both writers."""

from __future__ import annotations

from typing import Any

from prefine.models.forward import PackedModel
from prefine.models.padded_writer import PaddedWriter
from prefine.models.slot_writer import SlotWriter
from prefine.models.writer import Writer


def writer_for(model: PackedModel, tokenizer: Any, slots: int) -> Writer:
    """The writer of a model: in slots, or in padded batches where it takes no packed rows.

    Both take the same settings and random numbers and give the same results.
    """
    if model.path.packed and model.path.decodes and model.lengths is None:
        return SlotWriter(model, tokenizer, slots)
    return PaddedWriter(model, tokenizer, slots if model.lengths is None else 1)
