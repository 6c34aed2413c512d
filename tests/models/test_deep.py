"""A model with a real vocabulary and depth: what holds for two layers and 96 words holds there, too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prefine.data.batch import collate
from prefine.models.load import load_model
from prefine.recipe import LoraSection, ModelSection
from tests.models import tiny
from tests.models.tiny import DEEP_LAYERS, DEEP_VOCABULARY, alone

# Mean difference of log-probabilities of about -17 (nats); a wrong mask or position moves them by more than 1.
TOLERANCES = {"float32": 1e-4, "bfloat16": 0.1}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_packed_forward_is_near_alone(deep_model: Path, dtype: str) -> None:
    """Packing changes log-probabilities by rounding only, and the probe accepts the model."""
    loaded = load_model(ModelSection(name=str(deep_model), device="cpu", dtype=dtype), LoraSection(r=4))
    assert loaded.fallback is None
    assert loaded.packed.causal.config.vocab_size == DEEP_VOCABULARY
    assert loaded.packed.causal.config.num_hidden_layers == DEEP_LAYERS
    batch = collate([tiny.tree(20, 30, 10, vocabulary=DEEP_VOCABULARY), tiny.tree(5, 40, vocabulary=DEEP_VOCABULARY)])
    loaded.packed.eval()
    with torch.no_grad():
        values = loaded.packed(batch)
        apart = (values - alone(loaded.packed, batch)).abs()
    assert values.std() > 1.0  # the model has opinions: a uniform one would hide errors
    assert apart.mean() <= TOLERANCES[dtype]


def test_its_tokenizer_uses_the_whole_vocabulary(deep_model: Path) -> None:
    """Text goes to tokens and back."""
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(deep_model)
    assert len(words) == DEEP_VOCABULARY
    ids = words.encode("A question, and an answer.", add_special_tokens=False)
    assert max(ids) > 10_000
    assert words.decode(ids) == "A question, and an answer."
