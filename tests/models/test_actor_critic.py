"""A policy and its critic: log-probabilities at a temperature, values of the same tokens, and whose gradients go where.

"Alone" is transformers' plain implementation on one unpadded sequence.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prefine.models.actor_critic import ActorCritic, ValueHead
from prefine.models.forward.active_adapter import using_adapter
from prefine.models.forward.packed import LanguageHead, PackedModel, ScoreHead, in_fp32, standard_attention, unpack
from prefine.models.forward.path_probe import choose_path
from prefine.models.shared_base import add_copy
from tests.models import tiny
from tests.models.tiny import BATCH

# Plain, scaled logits, soft-capped logits, tied embeddings.
ARCHITECTURES = ["llama", "granite", "gemma2", "gpt2"]


def policy(
    architecture: str = "llama",
    critic: str | None = "shared",
    temperature: float = 0.7,
    lora: bool = True,
    packs: bool = True,
) -> PackedModel:
    """A random one with random adapters and a random value head."""
    model = PackedModel(tiny.make(architecture), torch.float32)
    assert (choose_path(model) is None) == packs
    if lora:
        model.model.requires_grad_(False)
        model.model = tiny.with_lora(model.model)
    if critic == "adapter":
        added = add_copy(model.model, "critic", learns=True)
        draw = torch.Generator().manual_seed(9)
        with torch.no_grad():
            for weight in added.values():
                weight.copy_(torch.randn(weight.shape, generator=draw) * 0.2)
    value = None if critic is None else ValueHead(model, "critic" if critic == "adapter" else None)
    if value is not None:
        tiny.random_weights(value, seed=4)
    model.head = ActorCritic(LanguageHead(temperature), value)
    return model.eval()


def value_layer(made: PackedModel) -> nn.Linear:
    assert isinstance(made.head, ActorCritic)
    assert made.head.value is not None
    return made.head.value.linear


def take_padded(made: PackedModel) -> None:
    made.path.packed = False
    made.causal.set_attn_implementation("eager")


@torch.no_grad()
def alone(model: PackedModel, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities, entropies and last hidden states of BATCH's targets, each sequence by itself."""
    ids, mask, row, column = unpack(BATCH)
    logits, hidden = [], []
    with standard_attention(model, "eager"):
        for one, real in zip(ids, mask, strict=True):
            out = model.causal(input_ids=one[None, : int(real.sum())], output_hidden_states=True)
            logits.append(out.logits[0])
            hidden.append(out.hidden_states[-1][0])
    places = list(zip(row.tolist(), column.tolist(), strict=True))
    every = torch.stack([(logits[r][c] / temperature).log_softmax(-1) for r, c in places])
    return (
        every.gather(1, BATCH.targets[:, None])[:, 0],
        -(every.exp() * every).sum(-1),
        torch.stack([hidden[r][c] for r, c in places]),
    )


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_it_says_of_tokens_is_what_transformers_says(architecture: str, padded: bool) -> None:
    """Divided by the temperature after all that the model itself does to its logits."""
    made = policy(architecture)
    logprobs, entropy, hidden = alone(made, 0.7)
    if padded:
        take_padded(made)
    out = made(BATCH, with_entropy=True)
    assert out.values is not None
    assert out.entropy is not None
    for found, wanted in ((out.logprobs, logprobs), (out.entropy, entropy)):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(out.values, value_layer(made)(hidden)[:, 0], rtol=0, atol=1e-5)
    torch.testing.assert_close(made(BATCH, head=LanguageHead(0.7)), logprobs, rtol=0, atol=1e-5)


def test_what_is_not_asked_for_is_not_there() -> None:
    made = policy(critic=None)
    out = made(BATCH)
    assert (out.values, out.entropy) == (None, None)
    torch.testing.assert_close(made(BATCH, with_entropy=True).logprobs, out.logprobs, rtol=0, atol=1e-6)


def test_a_new_critic_expects_nothing() -> None:
    model = PackedModel(tiny.make("llama"), torch.float32)
    assert choose_path(model) is None
    out = model(BATCH, head=ActorCritic(LanguageHead(), ValueHead(model)))
    assert out.values is not None
    assert not out.values.any()
    assert out.values.dtype == torch.float32


def test_at_temperature_1_it_is_the_model_itself() -> None:
    model = PackedModel(tiny.make("llama"), torch.float32)
    assert choose_path(model) is None
    assert torch.equal(model(BATCH, head=ActorCritic(LanguageHead())).logprobs, model(BATCH))


@pytest.mark.parametrize("architecture", ["bloom", "gemma2"])
def test_the_temperature_divides_logits_that_the_model_makes_itself(architecture: str) -> None:
    """Where the head may not take chosen rows only."""
    made = policy(architecture, critic=None, lora=False, packs=architecture != "bloom")
    take_padded(made)
    made.path.whole_logits = True
    with torch.no_grad():
        found = made(BATCH, head=LanguageHead(0.7))
    torch.testing.assert_close(found, alone(made, 0.7)[0], rtol=0, atol=1e-5)


def test_a_forward_takes_its_head_and_its_adapter_as_arguments() -> None:
    """One trunk is the policy, its reference and a reward model; no forward changes what the next one gives."""
    made, bare = policy(critic=None, temperature=1.0), tiny.packed("llama")
    before = dict(add_copy(made.model, "other"))
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in before.values():
            weight.copy_(torch.randn(weight.shape, generator=draw) * 0.2)
        own = made(BATCH).logprobs
        linear = nn.Linear(32, 2)
        language, score = LanguageHead(), ScoreHead(linear)
        reference = made(BATCH, head=language, adapter=None)
        torch.testing.assert_close(reference, bare(BATCH), rtol=0, atol=1e-5)
        other, scores = (made(BATCH, head=head, adapter="other") for head in (language, score))
        with using_adapter(made.model, "other"):
            assert torch.equal(other, made(BATCH).logprobs)
            assert torch.equal(scores, in_fp32(linear, made.at_ends(BATCH)))
        assert torch.equal(made(BATCH).logprobs, own)
    assert scores.shape == (BATCH.sequences, 2)
    assert all((one - two).abs().max() > 1e-3 for one, two in ((own, reference), (own, other), (other, reference)))


def test_values_are_fp32_whatever_the_trunk_computes_in() -> None:
    made = policy()
    made.compute_dtype = torch.bfloat16
    out = made(BATCH)
    assert out.values is not None
    assert out.values.dtype == out.logprobs.dtype == torch.float32
    fine = out.values - out.values.bfloat16().float()
    assert fine.abs().max() > 0


# --- Gradients -------------------------------------------------------------------------------------------------------


def reached(made: PackedModel, loss: Tensor) -> set[str]:
    """What a loss gives a gradient to: policy, critic's adapter, head or base."""
    made.zero_grad(set_to_none=True)
    loss.backward()
    found = set()
    for name, weight in made.named_parameters():
        if weight.grad is not None and weight.grad.any():
            kinds = (("head.value", "head"), (".critic.", "critic"), (".default.", "policy"))
            found.add(next((kind for part, kind in kinds if part in name), "base"))
    return found


def losses(made: PackedModel, *, head_only: bool = False) -> tuple[Tensor, Tensor]:
    """Something of the policy's, something of the critic's, in which each target counts differently."""
    out = made(BATCH, head_only=head_only)
    assert out.values is not None
    return (out.logprobs * tiny.LOSS_WEIGHTS).sum(), (out.values * tiny.LOSS_WEIGHTS).sum()


@pytest.mark.parametrize(
    ("critic", "head_only", "by_values"),
    [
        ("shared", False, {"policy", "head"}),
        ("shared", True, {"head"}),
        ("adapter", False, {"critic", "head"}),
    ],
)
def test_whose_gradients_go_where(critic: str, head_only: bool, by_values: set[str]) -> None:
    """Never into the base."""
    made = policy(critic=critic)
    of_policy, of_critic = losses(made, head_only=head_only)
    assert reached(made, of_critic) == by_values
    of_policy, _ = losses(made, head_only=head_only)
    assert reached(made, of_policy) == {"policy"}


def test_without_adapters_the_trunk_is_shared() -> None:
    made = policy(lora=False)
    assert reached(made, losses(made)[1]) == {"base", "head"}
    assert reached(made, losses(made, head_only=True)[1]) == {"head"}


@pytest.mark.parametrize(
    ("critic", "recomputed"),
    [("shared", False), ("shared", True), ("adapter", False)],
)
def test_gradients_are_those_of_plain_autograd(critic: str, recomputed: bool) -> None:
    """Of both losses together, against the padded path; layers that are computed again are the same ones."""
    made, plain = policy(critic=critic), policy(critic=critic)
    if recomputed:
        enable = getattr(made.causal, "activation_checkpointing_enable", None)
        (enable or made.causal.gradient_checkpointing_enable)({"use_reentrant": False})
    take_padded(plain)
    found = []
    for model in (made, plain):
        model.train()
        sum(losses(model)).backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert all(grad is not None for grads in found for grad in grads.values())
    tiny.assert_same_gradients(*found)


def test_a_critics_adapter_does_not_change_the_policy() -> None:
    """The two forwards take turns on the same layers."""
    made, without = policy(critic="adapter"), policy(critic=None)
    assert torch.equal(made(BATCH).logprobs, without(BATCH).logprobs)
    assert torch.equal(made(BATCH).logprobs, made(BATCH).logprobs)
    values = made(BATCH).values
    draw: Any = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if ".default." in name:
                weight.copy_(torch.randn(weight.shape, generator=draw))
    assert torch.equal(made(BATCH).values, values)  # and the policy does not change its critic
    assert not torch.equal(made(BATCH).logprobs, without(BATCH).logprobs)
