"""A model with a real vocabulary and depth: what holds for two layers and 96 words holds there, too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prefine.data.tokens.trees import collate
from prefine.models.actor_critic import ActorCritic, ValueHead
from prefine.models.forward.fused import unchanging_weights
from prefine.models.forward.packed import LanguageHead, evaluating
from prefine.models.loading.load import load_model
from prefine.recipe.sections import LoraSection, ModelSection
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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_ppo_measures_has_the_bits_of_what_it_trains_on(deep_model: Path, dtype: str) -> None:
    """Log-probabilities and values, with entropies or without, with gradients or without: the first ratio is 1."""
    loaded = load_model(ModelSection(name=str(deep_model), device="cpu", dtype=dtype), LoraSection(r=4))
    with torch.no_grad():
        for name, weight in loaded.trainable().items():
            if "lora_B" in name:
                weight.normal_(std=0.02)
    policy, value = loaded.packed, ValueHead(loaded.packed)
    value.linear.weight.data.normal_()
    policy.head = ActorCritic(LanguageHead(0.7), value)
    batch = collate([tiny.tree(n, 30, vocabulary=DEEP_VOCABULARY) for n in (9, 21, 40)])
    with torch.no_grad(), evaluating(policy), unchanging_weights():
        measured = policy(batch, with_entropy=True)
    policy.train()
    trained = policy(batch)
    assert trained.logprobs.requires_grad
    assert torch.equal(measured.logprobs, trained.logprobs)
    assert torch.equal(measured.values, trained.values)
    assert torch.equal((trained.logprobs - measured.logprobs).exp(), torch.ones_like(measured.logprobs))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_fresh_adapter_is_its_reference_to_the_last_bit(deep_model: Path, dtype: str) -> None:
    """DPO's first margin is 0, and not nearly 0."""
    loaded = load_model(ModelSection(name=str(deep_model), device="cpu", dtype=dtype), LoraSection(r=4))
    batch = collate([tiny.tree(9, 30, 20, vocabulary=DEEP_VOCABULARY)])
    with torch.no_grad(), evaluating(loaded.packed), loaded.packed.model.disable_adapter():  # type: ignore[operator]
        reference = loaded.packed(batch)
    loaded.packed.train()
    assert torch.equal(loaded.packed(batch), reference)
