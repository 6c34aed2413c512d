"""Every attention kernel computes what one dense matrix of scores, masked by hand, computes; gradients too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prefine.data.tokens.trees import Segment, runs
from prefine.models.forward import attention, blockwise
from prefine.models.forward.attention import choose_kernel, packed_attention
from prefine.models.forward.blockwise import Block, ScoreRule

# A pair, a demonstration, a prompt alone, a pair: 9+8+7, 3+12, 4, 2+1+6 tokens.
SEGMENTS = (Segment(0, 9, (8, 7)), Segment(24, 3, (12,)), Segment(39, 4, ()), Segment(43, 2, (1, 6)))
TOKENS = 52
# The same with what all prompts begin with, five tokens, once before them.
SHARED = (
    Segment(0, 5, ()),
    Segment(5, 4, (8, 7), 5),
    *(Segment(s.start, s.prompt, s.answers, 5) for s in SEGMENTS[1:]),
)
LAYOUTS = {"trees": SEGMENTS, "common beginning": SHARED}
PLAIN = ScoreRule(0.3, None, None, 0.0)
WINDOW = ScoreRule(0.3, 5, None, 0.0)
CAPPED = ScoreRule(0.3, None, 1.5, 0.0)
WINDOW_CAPPED = ScoreRule(0.3, 3, 0.7, 0.0)
RULES = {"plain": PLAIN, "window": WINDOW, "softcap": CAPPED, "window and softcap": WINDOW_CAPPED}


def sees(segments: tuple[Segment, ...], query: int, key: int, window: int | None = None) -> bool:
    """Whether a token of a row sees another: by the definition, one token at a time."""
    places = []
    for number, segment in enumerate(segments):
        end = segment.shared + segment.prompt
        places += [(number, 0, position) for position in range(segment.shared, end)]
        for which, length in enumerate(segment.answers, start=1):
            places += [(number, which, end + position) for position in range(length)]
    (tree, answer, position), (key_tree, key_answer, key_position) = places[query], places[key]
    distance = position - key_position
    near = distance >= 0 and (window is None or distance < window)
    common = key < segments[-1].shared
    return (common or tree == key_tree) and key_answer in (0, answer) and near


def dense(q: Tensor, k: Tensor, v: Tensor, rule: ScoreRule, segments: tuple[Segment, ...] = SEGMENTS) -> Tensor:
    """Attention over the whole row with one mask: q (H, T, D), k and v (K, T, D)."""
    groups = q.shape[0] // k.shape[0]
    scores = q @ k.repeat_interleave(groups, 0).transpose(1, 2) * rule.scale
    if rule.softcap is not None:
        scores = torch.tanh(scores / rule.softcap) * rule.softcap
    allowed = torch.tensor([[sees(segments, i, j, rule.window) for j in range(TOKENS)] for i in range(TOKENS)])
    allowed = allowed.to(scores.device)
    return torch.softmax(scores.masked_fill(~allowed, -torch.inf), -1) @ v.repeat_interleave(groups, 0)


def inputs(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """q of 6 heads, k and v of 2, and a gradient for the output."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(6, TOKENS, 8), (2, TOKENS, 8), (2, TOKENS, 8), (6, TOKENS, 8)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def output_and_gradients(kernel: Callable[..., Tensor], *arguments: Any, dtype: torch.dtype) -> list[Tensor]:
    q, k, v, grad = inputs(dtype)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out = kernel(*leaves, *arguments)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def assert_dense(
    kernel: Callable[..., Tensor],
    rule: ScoreRule,
    dtype: torch.dtype,
    tolerance: float,
    segments: tuple[Segment, ...] = SEGMENTS,
) -> None:
    ours = output_and_gradients(kernel, segments, rule, dtype=dtype)
    theirs = output_and_gradients(dense, rule, segments, dtype=torch.float64)
    for name, mine, right in zip(("out", "q", "k", "v"), ours, theirs, strict=True):
        assert mine.dtype == dtype
        assert (mine - right).abs().max() <= tolerance * right.abs().max(), name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("block_rows", [3, 512])
@pytest.mark.parametrize("keep_probabilities", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_blockwise_is_dense_attention(
    rule: str, keep_probabilities: bool, block_rows: int, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Segments longer than a block, and probabilities made again in the backward pass, change nothing."""
    monkeypatch.setattr(blockwise, "BLOCK_ROWS", block_rows)
    if not keep_probabilities:
        monkeypatch.setattr(blockwise, "KEEP_PROBABILITIES_UP_TO", 0)
    # The capped kernel takes its softmax in fp32 whatever its inputs are.
    exact = 1e-12 if "softcap" not in rule else 1e-5
    for dtype, tolerance in ((torch.float64, exact), (torch.float32, 1e-5), (torch.bfloat16, 0.05)):
        assert_dense(blockwise.blockwise, RULES[rule], dtype, tolerance, LAYOUTS[layout])


def test_probabilities_are_kept_up_to_the_limit_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the limit the backward pass computes them again, so memory grows with tokens, not their square."""
    made: list[int] = []
    real = blockwise._probabilities

    def counted(*arguments: Any) -> Tensor:
        made.append(1)
        return real(*arguments)

    monkeypatch.setattr(blockwise, "_probabilities", counted)
    q, k, v, _ = inputs()
    blocks = (Block(range(4), (range(4),)),)
    arguments = (q.view(2, 3, TOKENS, 8)[:, :, :4].requires_grad_(), k[:, :4], v[:, :4], blocks, PLAIN)
    for limit, passes in ((2 * 3 * 4 * 4, 1), (2 * 3 * 4 * 4 - 1, 2)):
        made.clear()
        monkeypatch.setattr(blockwise, "KEEP_PROBABILITIES_UP_TO", limit)
        blockwise._CausalBlocks.apply(*arguments).sum().backward()
        assert len(made) == passes


def test_causal_blocks_gradcheck() -> None:
    """The backward pass is the derivative of the forward pass, keys in two places: finite differences in float64."""
    q, k, v, _ = inputs()
    blocks = (Block(range(3), (range(3),)), Block(range(3, 6), (range(1), range(3, 6))))
    leaves = [q.view(2, 3, TOKENS, 8)[:, :, :6], k[:, :6], v[:, :6]]
    leaves = [x.contiguous().requires_grad_() for x in leaves]
    rule = ScoreRule(0.7, 3, None, 0.0)
    assert torch.autograd.gradcheck(lambda *x: blockwise._CausalBlocks.apply(*x, blocks, rule), leaves)


def test_blocks_by_hand() -> None:
    """Blocks of two queries; keys that lie side by side are one range; a window leaves out the keys before it."""
    shared = (Segment(0, 2, ()), Segment(2, 1, (2, 1), 2))
    first = [Block(range(2), (range(2),)), Block(range(2, 4), (range(4),)), Block(range(4, 5), (range(5),))]
    assert blockwise._blocks(shared, None, 2) == (*first, Block(range(5, 6), (range(3), range(5, 6))))
    assert blockwise._blocks(shared, 2, 2)[2:] == (
        Block(range(4, 5), (range(3, 5),)),
        Block(range(5, 6), (range(2, 3), range(5, 6))),
    )


def test_causal_bias_by_hand() -> None:
    """Two queries at positions 2 and 3 of four keys; with a window of 2 each sees itself and one before."""
    no = -torch.inf
    cpu = torch.device("cpu")
    assert blockwise.causal_bias(2, 4, None, torch.float32, cpu).tolist() == [[0, 0, 0, no], [0, 0, 0, 0]]
    assert blockwise.causal_bias(2, 4, 2, torch.float32, cpu).tolist() == [[no, 0, 0, no], [no, no, 0, 0]]


def test_runs_by_hand() -> None:
    """A prompt and its first answer are one run; each further answer is one with the prompt's keys before its own."""
    segments = (Segment(0, 3, (2, 3)), Segment(8, 2, ()), Segment(10, 1, (1,)))
    assert list(runs(segments)) == [
        (range(0, 5), ()),
        (range(5, 8), (range(3),)),
        (range(8, 10), ()),
        (range(10, 12), ()),
    ]
    segments = (Segment(0, 2, ()), Segment(2, 3, (2, 3), 2))
    assert list(runs(segments)) == [
        (range(2), ()),
        (range(2, 7), (range(2),)),
        (range(7, 10), (range(2), range(2, 5))),
    ]


def test_varlen_plan_by_hand() -> None:
    """The second answer's keys are the prompt's, once more, then its own."""
    plan = attention._varlen_plan((Segment(0, 3, (2, 3)), Segment(8, 2, (1,))), torch.device("cpu"))
    index, query_offsets, key_offsets, longest_query, longest_key = plan
    assert index.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 5, 6, 7, 8, 9, 10]
    assert query_offsets.tolist() == [0, 5, 8, 11]
    assert key_offsets.tolist() == [0, 5, 11, 14]
    assert (longest_query, longest_key) == (5, 6)
    assert query_offsets.dtype == key_offsets.dtype == torch.int32


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rule", RULES)
def test_flex_is_dense_attention(rule: str, layout: str) -> None:
    """FlexAttention with our block mask, uncompiled on the CPU, where it has no gradients."""
    q, k, v, _ = inputs(torch.float32)
    right = dense(q, k, v, RULES[rule], LAYOUTS[layout])
    out = attention._flex(q, k, v, LAYOUTS[layout], RULES[rule])
    assert (out - right).abs().max() <= 1e-5 * right.abs().max()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("kernel", attention.KERNELS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rule", RULES)
def test_kernels_on_a_gpu_are_dense_attention(rule: str, layout: str, kernel: str) -> None:
    """The compiled kernels themselves, gradients included."""
    if kernel == "flash" and not attention.flash_attention_installed():
        pytest.skip("needs flash-attn")
    dtype, tolerance = (torch.bfloat16, 0.05) if kernel == "flash" else (torch.float32, 1e-2)
    q, k, v, grad = (x.repeat(1, 1, 4).to("cuda", dtype) for x in inputs())  # kernels want wider heads
    results = []
    ours, right = attention.KERNELS[kernel], LAYOUTS[layout]
    for attend in (lambda *x: ours(*x, right, RULES[rule]), lambda *x: dense(*x, RULES[rule], right)):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        out = attend(*leaves)
        results.append([out.detach(), *torch.autograd.grad(out, leaves, grad)])
    for mine, right in zip(*results, strict=True):
        assert (mine - right).abs().max() <= tolerance * right.abs().max()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rule", RULES)
def test_flash_is_dense_attention(rule: str, layout: str, fake_flash: None) -> None:
    """What FlashAttention's kernel is given amounts to the same attention: offsets, repeated prompts, window, cap."""
    assert_dense(attention._flash, RULES[rule], torch.float64, 1e-12, LAYOUTS[layout])


@pytest.mark.parametrize(
    ("device", "dtype", "dropout", "flash", "kernel"),
    [
        ("cpu", torch.bfloat16, 0.0, True, "blockwise"),
        ("mps", torch.float32, 0.0, False, "blockwise"),
        ("cuda", torch.bfloat16, 0.0, True, "flash"),
        ("cuda", torch.float16, 0.1, True, "flash"),
        ("cuda", torch.float32, 0.0, True, "flex"),  # FlashAttention knows no fp32
        ("cuda", torch.float32, 0.1, True, "blockwise"),  # FlexAttention knows no dropout
        ("cuda", torch.bfloat16, 0.0, False, "flex"),
        ("cuda", torch.bfloat16, 0.1, False, "blockwise"),
    ],
)
def test_choose_kernel(device: str, dtype: torch.dtype, dropout: float, flash: bool, kernel: str) -> None:
    """The table of devices, types, dropout and what is installed."""
    assert choose_kernel(device, dtype, dropout, flash) == kernel
    assert kernel in attention.KERNELS


def call(training: bool = False, **overrides: Any) -> Tensor:
    """packed_attention as a layer of transformers calls it."""
    q, k, v, _ = inputs(torch.float32)
    arguments: dict[str, Any] = {
        "module": nn.Identity().train(training),
        "query": q[None],
        "key": k[None],
        "value": v[None],
        "attention_mask": None,
        "scaling": 0.3,
        "segments": SEGMENTS,
        "position_ids": torch.zeros(1, TOKENS),
    }
    return packed_attention(**arguments | overrides)[0]


def test_a_layer_gets_tokens_before_heads() -> None:
    """(1, H, T, D) in, (1, T, H, D) out, contiguous, with the scale of the layer or the usual 1/sqrt(D)."""
    q, k, v, _ = inputs(torch.float32)
    assert torch.allclose(call()[0].transpose(0, 1), dense(q, k, v, PLAIN), atol=1e-5)
    assert call().is_contiguous()
    usual = ScoreRule(8**-0.5, None, None, 0.0)
    assert torch.allclose(call(scaling=None)[0].transpose(0, 1), dense(q, k, v, usual), atol=1e-5)


def test_rotated_queries_in_fp32_take_the_type_of_values() -> None:
    """Under autocast some models rotate queries and keys into fp32; the output is of the values' type."""
    values = inputs(torch.bfloat16)[2]
    assert call(value=values[None]).dtype == torch.bfloat16


def test_dropout_only_in_training_and_right_on_average() -> None:
    """Attention dropout leaves the expected output alone, and evaluation entirely."""
    assert torch.equal(call(dropout=0.5), call())
    torch.manual_seed(0)
    drawn = torch.stack([call(training=True, dropout=0.3) for _ in range(600)])
    assert not torch.equal(drawn[0], drawn[1])
    error = (drawn.mean(0) - call()).abs()
    assert (error <= 5 * drawn.std(0) / 600**0.5 + 1e-6).all()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"segments": None}, "do not pass segments"),
        ({"s_aux": torch.zeros(6)}, "does not support s_aux"),
        ({"attention_mask": torch.zeros(1, 1, TOKENS, TOKENS)}, "does not support attention_mask"),
    ],
)
def test_what_it_does_not_know_is_refused(extra: dict[str, Any], message: str) -> None:
    """A sink, a mask of the model's own or a missing layout would silently give other numbers."""
    with pytest.raises(ValueError, match=message):
        call(**extra)


def test_traffic_is_counted_while_watched_only() -> None:
    """The probe learns how often layers came and of which windows they told."""
    with attention.watched() as traffic:
        call()
        call(sliding_window=7)
        attention._no_mask(1, 2, local_size=9)
        attention._no_mask(1, 2, local_size=None)
    call(sliding_window=8)
    assert (traffic.calls, traffic.windows_told, traffic.windows_asked) == (2, {7}, {9})
