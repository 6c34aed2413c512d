"""Chunks and gradients made by hand give what log_softmax over the whole vocabulary gives."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from prefine.models.forward import logprobs
from prefine.models.forward.logprobs import (
    Head,
    adjusted,
    logprobs_and_entropy,
    logprobs_of_logits,
    rows_per_chunk,
    selected_logprobs,
)

ROWS, WIDTH, VOCABULARY = 37, 12, 50

HEADS: dict[str, Callable[[], Head]] = {
    "frozen": lambda: Head(linear().requires_grad_(False)),
    "trainable": lambda: Head(linear()),
    "bias": lambda: Head(linear(bias=True).requires_grad_(False)),
    "trainable bias": lambda: Head(linear(bias=True)),
    "softcap": lambda: Head(linear().requires_grad_(False), softcap=2.0),
    "scale": lambda: Head(linear().requires_grad_(False), scale=0.25),
    "scale, trainable": lambda: Head(linear(), scale=0.25),
    "scale and softcap, trainable": lambda: Head(linear(), scale=3.0, softcap=1.5),
}


def linear(bias: bool = False) -> nn.Linear:
    torch.manual_seed(3)
    return nn.Linear(WIDTH, VOCABULARY, bias=bias)


def rows(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, targets, and a gradient for the result."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, WIDTH, generator=generator) * 2
    targets = torch.randint(VOCABULARY, (ROWS,), generator=generator)
    return hidden.to(dtype).requires_grad_(), targets, torch.randn(ROWS, generator=generator)


def whole(hidden: Tensor, targets: Tensor, head: Head) -> Tensor:
    """By the definition, over all logits at once, in float64."""
    return every_logprob(hidden, head)[torch.arange(len(targets)), targets]


def whole_entropy(hidden: Tensor, head: Head) -> Tensor:
    """Of each row's distribution, by the definition, in float64."""
    every = every_logprob(hidden, head)
    return -(every.exp() * every).sum(-1)


def every_logprob(hidden: Tensor, head: Head) -> Tensor:
    """Of each row and token, in float64."""
    m = head.module
    assert isinstance(m, nn.Linear)
    logits = hidden.double() @ m.weight.double().T
    if m.bias is not None:
        logits = logits + m.bias.double()
    logits = logits * head.scale
    if head.softcap is not None:
        logits = torch.tanh(logits / head.softcap) * head.softcap
    return torch.log_softmax(logits, -1)


def results(values: Tensor, hidden: Tensor, head: Head, grad: Tensor) -> list[Tensor]:
    """The values and the gradients of everything that has one."""
    leaves = [hidden, *(w for w in head.module.parameters() if w.requires_grad)]
    return [values.detach(), *torch.autograd.grad(values, leaves, grad.to(values.dtype))]


@pytest.fixture(params=[1, 16, 1000])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Rows in a chunk: one, not a divisor of all, more than there are."""
    monkeypatch.setattr(logprobs, "rows_per_chunk", lambda *_: request.param)
    return int(request.param)


@pytest.mark.parametrize("kind", HEADS)
def test_chunked_is_whole(kind: str, chunk: int) -> None:
    """Values and all gradients in fp32, for heads that are frozen, trainable, biased, scaled and capped."""
    head = HEADS[kind]()
    assert head.plain_and_frozen is (kind in ("frozen", "scale"))
    hidden, targets, grad = rows()
    ours = results(selected_logprobs(hidden, targets, head), hidden, head, grad)
    theirs = results(whole(hidden, targets, head), hidden, head, grad)
    assert len(ours) == len(theirs)
    assert ours[0].dtype == torch.float32
    for mine, right in zip(ours, theirs, strict=True):
        assert (mine - right).abs().max() <= 1e-5 * max(1.0, right.abs().max().item())


@pytest.mark.parametrize("kind", ["frozen", "softcap"])
def test_bf16_rounds_and_no_more(kind: str, chunk: int) -> None:
    """Hidden states and weights in bf16: values in fp32 to a few per cent, the gradient in bf16."""
    head = HEADS[kind]()
    head.module.to(torch.bfloat16)
    hidden, targets, grad = rows(torch.bfloat16)
    ours = results(selected_logprobs(hidden, targets, head), hidden, head, grad)
    theirs = results(whole(hidden, targets, head), hidden, head, grad)
    assert (ours[0].dtype, ours[1].dtype) == (torch.float32, torch.bfloat16)
    assert (ours[0] - theirs[0]).abs().max() <= 0.05
    assert (ours[1] - theirs[1]).abs().max() <= 0.02 * theirs[1].abs().max()


@pytest.mark.parametrize("kind", HEADS)
def test_without_gradients_the_values_are_the_same(kind: str, chunk: int) -> None:
    """Evaluation and references take the same numbers as training."""
    head = HEADS[kind]()
    hidden, targets, _ = rows()
    with torch.no_grad():
        quiet = selected_logprobs(hidden, targets, head)
    assert torch.equal(quiet, selected_logprobs(hidden, targets, head).detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", HEADS)
def test_log_probabilities_have_one_value(kind: str, dtype: torch.dtype, chunk: int) -> None:
    """The same bits with and without entropies, with and without gradients: PPO measures one way and trains another."""
    head = HEADS[kind]()
    head.module.to(dtype)
    hidden, targets, _ = rows(dtype)
    with torch.no_grad():
        both, entropy = logprobs_and_entropy(hidden, targets, head)
        alone = selected_logprobs(hidden, targets, head)
    trained, trained_entropy = logprobs_and_entropy(hidden, targets, head)
    assert entropy is not None and trained_entropy is not None
    for other in (alone, trained.detach(), selected_logprobs(hidden, targets, head).detach()):
        assert torch.equal(both, other)
    assert torch.equal(entropy, trained_entropy.detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("frozen", "trainable"), [("frozen", "trainable"), ("scale", "scale, trainable")])
def test_a_frozen_head_has_the_bits_of_one_that_learns(
    frozen: str, trainable: str, dtype: torch.dtype, chunk: int
) -> None:
    """So that a frozen copy of a policy is its reference to the last bit, and the first KL is 0."""
    found = []
    for kind in (frozen, trainable):
        head = HEADS[kind]()
        head.module.to(dtype)
        hidden, targets, _ = rows(dtype)
        found.append([each.detach() for each in logprobs_and_entropy(hidden, targets, head) if each is not None])
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("kind", ["frozen", "trainable"])
def test_entropy_is_summed_in_fp32_under_autocast(kind: str) -> None:
    """Products of logits and probabilities in bf16 would move it by a hundredth of a nat."""
    head = HEADS[kind]()
    hidden, targets, _ = rows()
    with torch.autocast("cpu", torch.bfloat16):
        _, entropy = logprobs_and_entropy(hidden, targets, head)
        logits = head.module(hidden)
    every = torch.log_softmax(logits.double(), -1)
    assert entropy is not None and entropy.dtype == torch.float32
    assert (entropy + (every.exp() * every).sum(-1)).abs().max() <= 1e-5


@pytest.mark.parametrize("kind", HEADS)
def test_entropy_is_that_of_the_whole_distribution(kind: str, chunk: int) -> None:
    """Values and all gradients, alone and added to those of log-probabilities, as autograd gives them in float64."""
    head = HEADS[kind]()
    hidden, targets, grad = rows()
    for share in (0.0, 2.0):
        logprobs_, entropy = logprobs_and_entropy(hidden, targets, head)
        assert entropy is not None
        found = results(share * logprobs_ + entropy, hidden, head, grad)
        right = results(share * whole(hidden, targets, head) + whole_entropy(hidden, head), hidden, head, grad)
        for value, wanted in zip(found, right, strict=True):
            assert (value - wanted).abs().max() <= 2e-5 * max(1.0, wanted.abs().max().item())


def test_gradient_in_bf16_where_a_token_is_nearly_certain() -> None:
    """At p = 0.999, 1 - p is what counts: it is taken in fp32, and rounded only then. Half of it was lost before."""
    torch.manual_seed(0)
    head = Head(nn.Linear(64, 512, bias=False).requires_grad_(False).to(torch.bfloat16))
    weight = head.module.weight
    assert isinstance(weight, Tensor)
    target = torch.tensor([7])
    hidden = (weight[7] * 10 / weight[7].float().norm() ** 2 * 1.3).detach()[None].requires_grad_()
    with torch.no_grad():
        assert 0.99 < float(torch.softmax((hidden @ weight.T).float(), -1)[0, 7]) < 0.9999
    right = torch.autograd.grad(whole(hidden, target, head).sum(), hidden)[0].float()
    ours = torch.autograd.grad(selected_logprobs(hidden, target, head).sum(), hidden)[0].float()
    assert (ours - right).norm() <= 0.02 * right.norm()


def test_by_hand() -> None:
    """Logits (0, ln 3) give probabilities 1/4 and 3/4; the gradient is W[target] minus the mean of W's rows."""
    head = Head(nn.Linear(1, 2, bias=False).requires_grad_(False))
    with torch.no_grad():
        head.module.weight.copy_(torch.tensor([[0.0], [math.log(3)]]))  # type: ignore[operator, union-attr]
    hidden = torch.ones(2, 1, requires_grad=True)
    values = selected_logprobs(hidden, torch.tensor([0, 1]), head)
    assert values.tolist() == pytest.approx([math.log(1 / 4), math.log(3 / 4)])
    (gradient,) = torch.autograd.grad(values.sum(), hidden)
    assert gradient[:, 0].tolist() == pytest.approx([-3 / 4 * math.log(3), 1 / 4 * math.log(3)])


def test_gradcheck() -> None:
    """The forward-made gradient is the derivative of the forward pass: finite differences in float64."""
    weight = linear().weight.detach().double()
    hidden, targets, _ = rows(torch.float64)
    hidden = hidden[:3].detach().requires_grad_()

    def values(x: Tensor) -> Tensor:
        return logprobs._FrozenHead.apply(x, weight, targets[:3], 1.5, False)[0]

    # The sum of exponentials is taken in fp32.
    assert torch.autograd.gradcheck(values, hidden, eps=1e-2, atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("kind", ["frozen", "trainable"])
def test_huge_logits_stay_finite(kind: str) -> None:
    """Of 1e4 nats: what is sure has log-probability 0, what is not -1e4, and no gradient is NaN."""
    head = HEADS[kind]()
    hidden, targets, _ = rows()
    large = (hidden * 1e4).detach().requires_grad_()
    values = selected_logprobs(large, targets, head)
    assert values.isfinite().all()
    assert (values <= 0).all()
    assert torch.autograd.grad(values.sum(), large)[0].isfinite().all()


@pytest.mark.parametrize("kind", ["frozen", "trainable"])
def test_no_rows(kind: str) -> None:
    """A microbatch without a target is a sum over nothing."""
    head = HEADS[kind]()
    hidden = torch.zeros(0, WIDTH, requires_grad=True)
    values = selected_logprobs(hidden, torch.zeros(0, dtype=torch.int64), head)
    assert values.shape == (0,)
    assert torch.autograd.grad(values.sum(), hidden)[0].shape == (0, WIDTH)


def test_full_logits_are_never_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a trainable head too: no tensor of all rows by the vocabulary lives between forward and backward pass."""
    monkeypatch.setattr(logprobs, "rows_per_chunk", lambda *_: 4)
    for kind in ("frozen", "trainable"):
        head = HEADS[kind]()
        hidden, targets, grad = rows()
        sizes: list[int] = []

        def note(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            selected_logprobs(hidden, targets, head).backward(grad)
        assert max(sizes) <= max(ROWS * WIDTH, VOCABULARY * WIDTH, 4 * VOCABULARY)


def test_rows_per_chunk() -> None:
    """48 MiB of fp32 logits on a CPU, 512 MiB elsewhere, and never fewer than 16 rows."""
    assert rows_per_chunk(49_152, "cpu") == (48 << 20) // (4 * 49_152) == 256
    assert rows_per_chunk(49_152, "cuda") == (512 << 20) // (4 * 49_152) == 2730
    assert rows_per_chunk(1_000_000_000, "cpu") == 16


def test_adjusted_by_hand() -> None:
    """Scaled first, then capped: 2 tanh(4 * 0.5 / 2) = 2 tanh(1)."""
    head = Head(nn.Identity(), scale=0.5, softcap=2.0)
    assert adjusted(torch.tensor([4.0]), head).item() == pytest.approx(2 * math.tanh(1))
    assert adjusted(torch.tensor([4.0], dtype=torch.bfloat16), Head(nn.Identity())).dtype == torch.float32


def test_logprobs_of_logits_by_hand() -> None:
    """Equal logits over four tokens: ln(1/4) each."""
    values = logprobs_of_logits(torch.full((2, 3, 4), 7.0), torch.zeros(2, 3, dtype=torch.int64))
    assert values.flatten().tolist() == pytest.approx([math.log(1 / 4)] * 6)
