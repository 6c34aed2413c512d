"""A packed row gives what each sequence gives alone, in every architecture; where it would not, the padded path does.

"Alone" is transformers' plain implementation on one unpadded sequence (tiny.alone).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prefine.data.tokens.trees import Segment, TokenTree, collate
from prefine.models.forward import attention, blockwise
from prefine.models.forward.attention import Traffic
from prefine.models.forward.packed import PackedModel, standard_attention, unpack
from prefine.models.forward.path_probe import choose_path, probe, take_padded_path
from tests.models import tiny
from tests.models.tiny import BATCH, BATCH_THAT_BEGINS_ALIKE, alone, assert_same_gradients, gradients, tree


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_packed_is_alone(architecture: str) -> None:
    """Log-probabilities to 1e-5 and gradients of all weights, with windows shorter than the sequences.

    The batch's pairs share their prompts in the row and have each their own alone: sharing changes nothing either.
    """
    model = tiny.packed(architecture)
    ours, theirs = model(BATCH), alone(model)
    assert theirs.std() > 0.1  # the random weights do make a difference
    assert (ours - theirs).abs().max() <= 1e-5
    assert_same_gradients(gradients(model, ours), gradients(model, theirs))


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_a_common_beginning_is_computed_once(architecture: str) -> None:
    """Trees whose prompts begin alike share that part of the row; log-probabilities and gradients are those alone."""
    batch = BATCH_THAT_BEGINS_ALIKE
    assert batch.tokens == 10 + (9 + 8 + 7) + (3 + 12) + (1 + 2 + 9)
    model = tiny.packed(architecture)
    ours, theirs = model(batch), alone(model, batch)
    assert (ours - theirs).abs().max() <= 1e-5
    assert_same_gradients(gradients(model, ours), gradients(model, theirs))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "phi", "gemma2", "mixtral"])
def test_packed_adapter_gradients_are_those_alone(architecture: str) -> None:
    """With a trained LoRA on frozen weights, as most runs are; the head's own path for frozen heads included."""
    model = tiny.packed(architecture)
    model.model = tiny.with_lora(model.model)
    ours, theirs = model(BATCH), alone(model)
    assert (ours - theirs).abs().max() <= 1e-5
    assert_same_gradients(gradients(model, ours), gradients(model, theirs))


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2"])
def test_blocks_and_recomputation_change_nothing(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences longer than a block of queries, and probabilities not kept for the backward pass."""
    model = tiny.packed(architecture)
    expected, right = alone(model), gradients(model, alone(model))
    monkeypatch.setattr(blockwise, "BLOCK_ROWS", 4)
    monkeypatch.setattr(blockwise, "KEEP_PROBABILITIES_UP_TO", 0)
    ours = model(BATCH)
    assert (ours - expected).abs().max() <= 1e-5
    assert_same_gradients(gradients(model, ours), right)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2"])
def test_the_flash_path_is_alone(architecture: str, fake_flash: None) -> None:
    """The code that runs on CUDA with flash-attn, with the kernel computed by hand on the CPU."""
    model = tiny.packed(architecture)
    ours, theirs = model(BATCH), alone(model)
    assert (ours - theirs).abs().max() <= 1e-5
    assert_same_gradients(gradients(model, ours), gradients(model, theirs))


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2", "gpt2", "mixtral"])
def test_a_sequence_does_not_feel_its_neighbours(architecture: str) -> None:
    """Other tokens in one tree leave the others' log-probabilities as they were, and so does its absence."""
    model = tiny.packed(architecture)
    trees = [tree(9, 8, 7), tree(6, 5, 4), tree(10, 3)]
    other = TokenTree([5] * 6, ([7] * 5, [9] * 4), (None, None))
    with torch.no_grad():
        first = model(collate(trees))
        second = model(collate([trees[0], other, trees[2]]))
        absent = model(collate([trees[0], trees[2]]))
    assert torch.allclose(first[:15], second[:15], atol=1e-6)
    assert torch.allclose(first[-3:], second[-3:], atol=1e-6)
    assert not torch.allclose(first[15:24], second[15:24], atol=0.1)
    assert torch.allclose(absent, torch.cat((first[:15], first[-3:])), atol=1e-5)


def test_supervision_picks_targets_only() -> None:
    """A mask takes log-probabilities out of the result and changes none of the rest."""
    model = tiny.packed("llama")
    whole = tree(5, 6, 4)
    masks = ([True, False, True, False, False, True], None)
    some = TokenTree(whole.prompt, whole.answers, masks)
    with torch.no_grad():
        assert torch.allclose(model(collate([some])), model(collate([whole]))[[0, 2, 5, 6, 7, 8, 9]], atol=1e-6)


def test_gradient_checkpointing_changes_nothing() -> None:
    """Layers computed twice give the same gradients, and do compute twice."""
    model = tiny.packed("llama")
    model.model = tiny.with_lora(model.model)
    model.train()
    kept = gradients(model, model(BATCH))
    model.causal.activation_checkpointing_enable({"use_reentrant": False})
    with attention.watched() as traffic:
        again = gradients(model, model(BATCH))
    assert traffic.calls == 4  # two layers, twice
    assert_same_gradients(again, kept, 1e-6)


def test_unpack_by_hand() -> None:
    """Prompt [5, 6] with answers [7, 8] and [9]: two rows behind their own prompts; where each target is predicted."""
    ids, mask, row, column = unpack(collate([TokenTree([5, 6], ([7, 8], [9]), (None, None))]))
    assert ids.tolist() == [[5, 6, 7, 8], [5, 6, 9, 0]]
    assert mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert (row.tolist(), column.tolist()) == ([0, 0, 1], [1, 2, 1])


def test_unpacked_rows_have_the_common_beginning_each() -> None:
    """Prompts 1 to 8 and 9, then 10 and 11: the eight stand once in the row, and in each padded row."""
    common = list(range(1, 9))
    trees = [TokenTree([*common, 9], ([20],), (None,)), TokenTree([*common, 10, 11], ([21], [22, 23]), (None, None))]
    batch = collate(trees)
    assert batch.input_ids.tolist() == [[*common, 9, 20, 10, 11, 21, 22, 23]]
    ids, mask, row, column = unpack(batch)
    rows = [[*common, 9, 20, 0, 0], [*common, 10, 11, 21, 0], [*common, 10, 11, 22, 23]]
    assert ids.tolist() == rows
    assert mask.sum(1).tolist() == [10, 11, 12]
    assert list(zip(row.tolist(), column.tolist(), strict=True)) == [(0, 8), (1, 9), (2, 9), (2, 10)]


@pytest.mark.parametrize("architecture", tiny.UNPACKABLE)
def test_what_cannot_be_packed_is_padded(architecture: str) -> None:
    """The probe says why; the padded path gives each sequence's own log-probabilities and gradients."""
    model = PackedModel(tiny.make(architecture), torch.float32)
    attention_before = model.causal.config._attn_implementation
    reason = choose_path(model)
    assert reason is not None
    assert tiny.UNPACKABLE[architecture][1] in reason
    assert "\n" not in reason
    assert not model.path.packed
    assert not model.path.whole_logits
    model.eval()  # Phi-MoE draws its experts by lot in training
    assert model.causal.config._attn_implementation == attention_before != attention.NAME
    ours, theirs = model(BATCH), alone(model)
    assert (ours - theirs).abs().max() <= 1e-5
    assert_same_gradients(gradients(model, ours), gradients(model, theirs), 1e-4)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "granite", "cohere2", "phi"])
def test_the_padded_path_is_right_for_what_can_be_packed(architecture: str) -> None:
    """For who asks for sdpa or eager: the head, with its scales, caps and biases, on chosen rows only."""
    model = PackedModel(tiny.make(architecture), torch.float32)
    take_padded_path(model)
    assert not model.path.whole_logits
    assert (model(BATCH) - alone(model)).abs().max() <= 1e-5


def test_a_head_with_a_secret_makes_whole_logits() -> None:
    """What a model does between its trunk and its logits is found by comparing, not by its name."""
    model = PackedModel(tiny.make("bloom"), torch.float32)
    inner = model.causal.forward

    def doubled(*args: Any, **kwargs: Any) -> Any:
        out = inner(*args, **kwargs)
        out.logits = 2 * out.logits
        return out

    model.causal.forward = doubled
    assert choose_path(model) is not None
    assert model.path.whole_logits
    model.eval()
    assert (model(BATCH) - alone(model)).abs().max() <= 1e-5


def compute_in(dtype: torch.dtype, architecture: str = "llama") -> PackedModel:
    """A random model with packed attention whose matrix products are of this type, as load makes them."""
    causal = tiny.make(architecture).to(dtype)
    causal.set_attn_implementation(attention.NAME)
    return PackedModel(causal, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2", "phi"])
def test_the_probe_accepts_what_is_right(architecture: str, dtype: torch.dtype) -> None:
    """In both compute types, leaving mode, gradients and attention as they were."""
    model = compute_in(dtype, architecture)
    for training in (True, False):
        model.train(training)
        assert probe(model) is None
        assert model.training is training
    assert model.causal.config._attn_implementation == attention.NAME
    assert all(weight.grad is None for weight in model.parameters())


def leaks_a_little(out: Tensor) -> Tensor:
    """Each token also gets a thousandth of the token before it, whosesoever that is."""
    return out + 1e-3 * out.roll(1, dims=1)


def ignores_segments(*args: Any, segments: Any, **kwargs: Any) -> Any:
    """One causal sequence from end to end."""
    whole = Segment(0, sum(s.prompt + sum(s.answers) for s in segments), ())
    return attention.packed_attention(*args, segments=(whole,), **kwargs)


def one_tree_is_one_sequence(*args: Any, segments: Any, **kwargs: Any) -> Any:
    """Trees apart, but the rejected answer sees the chosen one."""
    merged = [Segment(s.start, s.prompt + sum(s.answers), (), s.shared) for s in segments]
    return attention.packed_attention(*args, segments=merged, **kwargs)


def leaky(*args: Any, **kwargs: Any) -> Any:
    """Right attention, then a small leak: far below bf16's noise in log-probabilities."""
    out, weights = attention.packed_attention(*args, **kwargs)
    return leaks_a_little(out), weights


def too_sharp(*args: Any, scaling: float, **kwargs: Any) -> Any:
    """No leak, but another function."""
    return attention.packed_attention(*args, scaling=4 * scaling, **kwargs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (ignores_segments, "another sequence"),
        (one_tree_is_one_sequence, "another sequence"),
        (leaky, "another sequence"),
        (too_sharp, "differ by"),
    ],
)
def test_the_probe_rejects_wrong_attention(
    wrong: Callable[..., Any], message: str, dtype: torch.dtype, registered: Callable[[Any], None]
) -> None:
    """In fp32 and in bf16, where rounding hides small differences but not that a token is reached at all."""
    model = compute_in(dtype)
    registered(wrong)
    reason = probe(model)
    assert reason is not None
    assert message in reason


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Put another function in the packed attention's place until the test ends."""
    from transformers import AttentionInterface

    def put(function: Any) -> None:
        monkeypatch.setitem(AttentionInterface._global_mapping, attention.NAME, function)

    return put


def raises_nothing_said(*args: Any, **kwargs: Any) -> Any:
    raise NotImplementedError


def test_an_error_without_words_is_a_reason_too(registered: Callable[[Any], None]) -> None:
    """A model's code may raise anything, also with an empty message."""
    model = compute_in(torch.float32)
    registered(raises_nothing_said)
    assert probe(model) == "its forward refused the packed row (NotImplementedError: )"


def test_a_window_that_the_layers_do_not_tell_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real windows are longer than the probe's sequences, so numbers cannot show that one is lost."""
    model = compute_in(torch.float32, "mistral")
    assert probe(model) is None
    for layer in model.causal.model.layers:
        monkeypatch.setattr(layer.self_attn.config, "sliding_window", 4096)
    told = attention.packed_attention

    def forgets(*args: Any, sliding_window: int | None = None, **kwargs: Any) -> Any:
        return told(*args, **kwargs)

    from transformers import AttentionInterface

    assert probe(model) is None
    monkeypatch.setitem(AttentionInterface._global_mapping, attention.NAME, forgets)
    assert "window of 4096 tokens" in str(probe(model))


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_bf16_stays_near_fp32(architecture: str) -> None:
    """Weights and products in bf16: log-probabilities in fp32, near those of the fp32 model."""
    exact = tiny.packed(architecture)
    rounded = compute_in(torch.bfloat16, architecture)
    with torch.no_grad():
        ours, theirs = rounded(BATCH), exact(BATCH)
    assert ours.dtype == torch.float32
    assert (ours - theirs).abs().max() <= 0.3
    assert (ours - theirs).abs().mean() <= 0.05


def test_standard_attention_is_given_back() -> None:
    """Inside, transformers attends its own way; after it, also after an error, packed rows work again."""
    model = tiny.packed("llama")
    with torch.no_grad():
        before = model(BATCH)
        with standard_attention(model) as generator:
            written = generator.generate(input_ids=torch.tensor([[5, 6, 7]]), max_new_tokens=4, do_sample=False)
        assert written.shape[1] <= 7
        with pytest.raises(RuntimeError, match="inside"), standard_attention(model):
            raise RuntimeError("inside")
        assert torch.equal(model(BATCH), before)


def test_traffic_of_the_probe_is_not_left_behind() -> None:
    """Watching ends with the probe."""
    tiny.packed("llama")
    assert attention._watched == []
    assert Traffic().calls == 0


def test_full_fine_tuning_reaches_tied_weights() -> None:
    """All weights in fp32 and trainable; a tied table gets its gradient as embedding and as head."""
    model = tiny.packed("llama", tie_word_embeddings=True)
    table = model.causal.get_input_embeddings().weight
    assert model.causal.get_output_embeddings().weight is table
    ours, theirs = model(BATCH), alone(model)
    assert (ours - theirs).abs().max() <= 1e-5
    found, right = gradients(model, ours), gradients(model, theirs)
    assert_same_gradients(found, right)
    (name,) = [name for name, weight in model.named_parameters() if weight is table]
    unseen = sorted(set(range(tiny.VOCABULARY)) - set(BATCH.input_ids[0].tolist()) - set(BATCH.targets.tolist()))
    assert found[name][unseen].abs().sum() > 0  # as head every row counts, also of tokens that are not there
    assert {type(model.logits_head().module)} == {nn.Linear}
    assert not model.logits_head().plain_and_frozen


def test_full_fine_tuning_in_bf16_products() -> None:
    """fp32 weights under autocast: gradients are fp32 and near the exact ones."""
    exact = tiny.packed("llama")
    mixed = PackedModel(exact.model, torch.bfloat16)
    right, found = gradients(exact, exact(BATCH)), gradients(mixed, mixed(BATCH))
    for name, grad in right.items():
        assert found[name].dtype == torch.float32
        assert (found[name] - grad).norm() <= 0.1 * grad.norm() + 1e-3, name
