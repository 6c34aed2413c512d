"""Rotary frequencies that depend on the longest sequence of a call, and which sequences can share a call.

Two kinds in transformers do (`dynamic_rope_update`). "dynamic" (NTK scaling) has frequencies for each length beyond the
trained one, and keeps those of the longest sequence so far. "longrope" (arXiv 2402.13753) has one set up to the trained
length and one beyond it. All others (linear, llama3, yarn) have the same frequencies for every length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True, slots=True)
class LengthRule:
    """How a model's frequencies depend on the length of a sequence.

    Attributes:
        kind: dynamic or longrope.
        limit: tokens up to which all sequences have the same frequencies.
    """

    kind: str
    limit: int

    def groups(self, lengths: Sequence[int]) -> list[list[int]]:
        """Indices of the sequences that may be computed together, shortest first."""
        found: dict[int, list[int]] = {}
        for index, length in enumerate(lengths):
            own = self.limit if length <= self.limit else length if self.kind == "dynamic" else self.limit + 1
            found.setdefault(own, []).append(index)
        return [found[own] for own in sorted(found)]

    def __str__(self) -> str:
        return f"sequences of more than {self.limit:,} tokens separate from shorter ones ({self.kind} rotary)"


def length_rule(config: Any) -> LengthRule | None:
    """The rule of a model's config; None if frequencies are the same for every length."""
    text = config.get_text_config()
    told = getattr(text, "rope_parameters", None) or {}
    kinds = [
        told,
        *(each for each in told.values() if isinstance(each, dict)),
    ]  # some configs have them per kind of layer
    rules: dict[str, int] = {}
    for each in kinds:
        kind = str(each.get("rope_type", each.get("type", "")))
        if "dynamic" in kind:
            rules["dynamic"] = text.max_position_embeddings
        elif kind == "longrope":
            rules["longrope"] = each.get("original_max_position_embeddings") or text.max_position_embeddings
    # If both occur, "dynamic" separates all that "longrope" does.
    return LengthRule(min(rules), min(rules.values())) if rules else None


def forget_lengths(model: nn.Module) -> None:
    """Reset every module to the frequencies of its trained length."""
    for module in model.modules():
        trained = getattr(module, "original_max_seq_len", None)
        if trained is None:
            continue
        for name in [name for name in {**vars(module), **module._buffers} if name.endswith("original_inv_freq")]:
            prefix = name.removesuffix("original_inv_freq")
            present, original = getattr(module, f"{prefix}inv_freq"), getattr(module, name)
            module.register_buffer(f"{prefix}inv_freq", original.to(present.device).clone(), persistent=False)
            setattr(module, f"{prefix}max_seq_len_cached", trained)
