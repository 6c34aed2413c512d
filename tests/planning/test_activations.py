"""What a plan counts is what lives while a real model trains: saved tensors, and the peak, at several lengths."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from prefine.data.tokens.trees import TokenTree, collate
from prefine.models.forward import attention, fused
from prefine.models.forward.blockwise import BLOCK_ROWS, KEEP_PROBABILITIES_UP_TO
from prefine.models.forward.packed import PackedModel
from prefine.planning.activations import Forward, Head, TreeLengths, blocks, kept_scores, step_bytes
from prefine.planning.architecture import Architecture, architecture_of
from tests.planning.live import LiveBytes

SHORT = (TreeLengths(64, (64, 64)),) * 8
LONG = (TreeLengths(512, (512, 512)),)
ONE = (TreeLengths(700, (800,)),)
CONFIG = {
    "model_type": "llama",
    "hidden_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 256,
    "vocab_size": 512,
}


def built(rank: int, dtype: torch.dtype, checkpointing: bool) -> tuple[PackedModel, Forward]:
    attention.register()
    config = LlamaConfig(**CONFIG, attn_implementation="prefine")
    model = LlamaForCausalLM(config).to(dtype if rank else torch.float32)
    if rank:
        model = get_peft_model(model, LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM"))
        for name, parameter in model.named_parameters():
            parameter.data = parameter.data.float() if "lora_" in name else parameter.data
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    packed = PackedModel(model, dtype)
    fused.install(model)
    packed.train()
    return packed, forward(rank, dtype.itemsize, checkpointing)


def forward(
    rank: int = 8, itemsize: int = 4, checkpointing: bool = False, shapes: Architecture | None = None
) -> Forward:
    shapes = architecture_of(CONFIG) if shapes is None else shapes
    targets = shapes.targets("all-linear") if rank else ()
    return Forward(shapes, "cpu", itemsize, "blockwise", rank, targets, checkpointing=checkpointing)


@pytest.mark.parametrize("trees", [SHORT, LONG, ONE], ids=["short", "long", "one"])
@pytest.mark.parametrize(
    ("rank", "dtype", "checkpointing"),
    [
        (8, torch.float32, False),
        (8, torch.bfloat16, False),
        (0, torch.float32, False),
        (0, torch.bfloat16, False),
        (8, torch.float32, True),
    ],
    ids=["lora", "lora-bf16", "all", "all-bf16", "lora-checkpointing"],
)
def test_what_is_counted_lives(
    trees: tuple[TreeLengths, ...], rank: int, dtype: torch.dtype, checkpointing: bool
) -> None:
    model, how = built(rank, dtype, checkpointing)
    rows = [
        TokenTree(
            [1 + number] * tree.prompt, tuple([3 + number] * n for n in tree.answers), (None,) * len(tree.answers)
        )
        for number, tree in enumerate(trees)
    ]
    batch = collate(rows)
    model(batch)  # makes the masks, which stay
    with LiveBytes() as live:
        loss = -model(batch).sum()
        after_forward = live.now
        loss.backward()
    step = step_bytes(how, trees, "language")
    if not checkpointing:
        assert step.saved + step.scores + step.weights == pytest.approx(after_forward, rel=0.02)
    gradients = sum(each.numel() for each in model.parameters() if each.requires_grad) * 4
    low, high = (0.97, 1.03) if rank else (0.93, 1.1)  # of all weights, gradients grow as saved tensors go
    assert low * live.peak <= step.peak - step.masks + (0 if rank else gradients // 2) <= high * live.peak


def test_probabilities_are_kept_up_to_a_limit_and_then_recomputed() -> None:
    """So memory is not monotone in the length of sequences: what one linear rule in tokens gets wrong."""
    how = forward()
    heads = how.architecture.heads
    assert heads * BLOCK_ROWS**2 <= KEEP_PROBABILITIES_UP_TO < heads * 500 * (BLOCK_ROWS + 500)
    assert kept_scores(how, [TreeLengths(BLOCK_ROWS, ())]) == heads * BLOCK_ROWS**2 * 4
    assert kept_scores(how, [TreeLengths(BLOCK_ROWS + 500, ())]) == heads * BLOCK_ROWS**2 * 4
    assert blocks([TreeLengths(600, (8, 9), shared=100)]) == [(100, 100), (508, 608), (9, 609)]


lengths = st.integers(1, 3000)


@given(
    st.lists(lengths, min_size=1, max_size=6),
    st.sampled_from(["language", "score", "actor_critic"]),
    st.integers(1, 64),
)
def test_more_tokens_never_need_less_apart_from_kept_probabilities(answers: list[int], head: Head, more: int) -> None:
    how = forward()
    few = step_bytes(how, [TreeLengths(10, tuple(answers))], head)
    many = step_bytes(how, [TreeLengths(10 + more, tuple(answers))], head)
    assert many.saved > few.saved
    assert few.peak > 0


@given(st.integers(1, 100), st.integers(1, 12))
def test_below_the_limit_memory_grows_with_the_square_of_the_length(length: int, count: int) -> None:
    """The same tokens in longer sequences: the linear terms stay, the probabilities grow in proportion."""
    how = forward()
    short = step_bytes(how, [TreeLengths(length, (1,))] * (2 * count), "score")
    long = step_bytes(how, [TreeLengths(2 * length + 1, (1,))] * count, "score")
    assert long.saved == short.saved
    assert long.scores == 2 * short.scores


@given(st.integers(1, 2000), st.integers(1, 4))
def test_every_saving_saves(length: int, count: int) -> None:
    trees = [TreeLengths(length, (length,))] * count
    plain = step_bytes(forward(), trees, "language")
    assert step_bytes(forward(checkpointing=True), trees, "language").saved < plain.saved
    assert step_bytes(forward(itemsize=2), trees, "language").saved < plain.saved
    assert step_bytes(forward(rank=2), trees, "language").saved < plain.saved
    assert step_bytes(forward(), trees, "score").peak <= plain.peak
    assert step_bytes(forward(), trees, "language", passes=2).saved > 1.9 * plain.saved
