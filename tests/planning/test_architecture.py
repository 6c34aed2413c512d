"""Shapes from a config alone: those of models as they are built, and refusals of what cannot be built."""

from __future__ import annotations

import pytest

from prefine.errors import ModelError
from prefine.planning.architecture import architecture_of

QWEN_7B = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18_944,
    "vocab_size": 152_064,
    "tie_word_embeddings": False,
}


def test_the_weights_of_a_known_model_are_counted() -> None:
    """Qwen2.5-7B has 7,615,616,512 weights, 6.53 billion without embeddings (its model card)."""
    shapes = architecture_of(QWEN_7B)
    assert shapes.parameters == 7_615_616_512
    assert shapes.parameters - 2 * 152_064 * 3584 == pytest.approx(6.53e9, rel=0.002)
    assert (shapes.query_width, shapes.kv_width, shapes.gated, shapes.tied) == (3584, 512, True, False)
    assert len(shapes.linears) == 7 * 28


def test_tied_weights_count_once() -> None:
    """GPT-2 has 124,439,808 weights."""
    shapes = architecture_of({"model_type": "gpt2"})
    assert (shapes.parameters, shapes.tied, shapes.gated) == (124_439_808, True, False)
    assert {each.role for each in shapes.linears} == {"attention", "attention output", "mlp", "mlp output"}


def test_targets_are_found_as_peft_finds_them() -> None:
    shapes = architecture_of(QWEN_7B)
    assert len(shapes.targets(["q_proj", "v_proj"])) == 2 * 28
    assert len(shapes.targets(r"model\.layers\.0\..*_proj")) == 7
    with pytest.raises(ModelError, match="matches no linear module"):
        shapes.targets(["query"])


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"model_type": "nothing-known"}, "cannot be planned from its config"),
        ({**QWEN_7B, "num_hidden_layers": 10**7}, "num_hidden_layers 10,000,000"),
        ({}, "cannot be planned"),
    ],
)
def test_what_cannot_be_built_is_refused(config: dict[str, object], problem: str) -> None:
    with pytest.raises(ModelError, match=problem):
        architecture_of(config)
