"""The faster modules compute what transformers' and peft's own compute: outputs and every gradient."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from prefine.models.forward import fused
from tests.models import tiny

WIDTH = 16


class Block(nn.Module):
    """A linear map with and without bias, as peft finds them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, 24)
        self.second = nn.Linear(24, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


def adapted(dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    """Block with a LoRA on both maps, frozen weights of this type, A and B in fp32 and not 0."""
    torch.manual_seed(0)
    usual = {"r": 4, "lora_alpha": 6, "target_modules": ["first", "second"]}
    model = get_peft_model(Block().to(dtype), LoraConfig(**usual | settings))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.3)
    return model


def rows(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()


def outcome(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The output, and gradients of the input and of all trainable weights, for a loss that tells entries apart."""
    out = model(x)
    named = {"x": x, **{name: w for name, w in model.named_parameters() if w.requires_grad}}
    loss = (out.float() * torch.linspace(-1, 2, out.numel()).view_as(out)).sum()
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    gradients = {name: g for name, g in zip(named, found, strict=True) if g is not None}
    return {"out": out.detach(), **gradients}


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, right in theirs.items():
        assert ours[name].dtype == right.dtype, name
        assert (ours[name] - right).abs().max() <= tolerance * right.abs().max(), name


def assert_fused_is_composed(model: Any, tolerance: float = 1e-5, dtype: torch.dtype = torch.float32) -> None:
    """The same model before and after install, with the same random numbers."""
    composed = copy.deepcopy(model)
    assert fused.install(model)["lora"] == 2
    torch.manual_seed(7)
    ours = outcome(model, rows(dtype))
    torch.manual_seed(7)
    assert_equal(ours, outcome(composed, rows(dtype)), tolerance)


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"lora_dropout": 0.3}, {"r": 1, "lora_alpha": 1}])
def test_lora_linear_is_pefts(settings: dict[str, Any]) -> None:
    """Scale alpha/r or alpha/sqrt(r), base bias or none, dropout with the same mask, fp32."""
    assert_fused_is_composed(adapted(**settings))


def test_lora_linear_in_bf16_is_pefts() -> None:
    """bf16 weights under autocast, fp32 adapter: the same to rounding, gradients of A and B in fp32."""
    with torch.autocast("cpu", torch.bfloat16):
        assert_fused_is_composed(adapted(torch.bfloat16), 0.03, torch.bfloat16)


def test_dropout_is_right_on_average_and_off_in_evaluation() -> None:
    """The expected output is that without dropout; evaluation has none."""
    model = adapted(lora_dropout=0.3)
    fused.install(model)
    x = rows().detach()
    first = model.base_model.model.first
    with torch.no_grad():
        still = first.eval()(x)
        first.train()
        torch.manual_seed(0)
        drawn = torch.stack([first(x) for _ in range(500)])
    assert drawn.std(0).max() > 0.01
    assert ((drawn.mean(0) - still).abs() <= 5 * drawn.std(0) / 500**0.5 + 1e-6).all()


def test_a_disabled_adapter_gives_the_base_and_comes_back() -> None:
    """DPO's reference is the same weights with the adapter off."""
    model = adapted()
    torch.manual_seed(0)
    base = Block()
    fused.install(model)
    x = rows().detach()
    with torch.no_grad():
        before = model(x)
        with model.disable_adapter():
            assert torch.equal(model(x), base(x))
        assert torch.equal(model(x), before)
        assert not torch.allclose(before, base(x), atol=0.01)


def test_a_merged_adapter_is_not_added_twice() -> None:
    """Merged and unmerged give the same output, and so does a merged one that is disabled."""
    model = adapted()
    fused.install(model)
    x = rows().detach()
    with torch.no_grad():
        before = model(x)
        with model.disable_adapter():
            base = model(x)
        model.merge_adapter()
        assert torch.allclose(model(x), before, atol=1e-5)
        with model.disable_adapter():
            assert torch.allclose(model(x), base, atol=1e-5)
        model.unmerge_adapter()
        assert torch.allclose(model(x), before, atol=1e-5)


def test_what_is_not_plain_goes_to_peft() -> None:
    """Two active adapters, a bias on B, DoRA and trainable base weights compute as peft computes them."""
    two = adapted()
    two.add_adapter("second", LoraConfig(r=2, target_modules=["first", "second"], init_lora_weights=False))
    two.base_model.set_adapter(["default", "second"])
    with_bias = adapted(lora_bias=True)
    dora = adapted(use_dora=True)
    trainable = adapted()
    trainable.base_model.model.first.base_layer.weight.requires_grad_(True)
    for model in (two, with_bias, dora, trainable):
        assert_fused_is_composed(model, 1e-5)


def test_lora_gradcheck() -> None:
    """The backward pass is the derivative of the forward pass: finite differences in float64."""
    torch.manual_seed(0)
    x, dropped = (torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    down, up = torch.randn(2, 5, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    down.requires_grad_()
    up.requires_grad_()
    weight, bias = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, dtype=torch.float64)

    def plain(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return fused._LoraLinear.apply(x, None, weight, bias, a, b, 1.7)

    def with_dropout(x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return fused._LoraLinear.apply(x, y, weight, None, a, b, 1.7)

    assert torch.autograd.gradcheck(plain, (x, down, up))
    assert torch.autograd.gradcheck(with_dropout, (x, dropped, down, up))


def test_gate_gradcheck() -> None:
    """silu(gate) * up in float64; at gate 0 it is 0, at up 1 and gate 1 it is 1 / (1 + 1/e)."""
    torch.manual_seed(0)
    gate, up = (torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(fused._SiluGate.apply, (gate, up))
    by_hand = fused._SiluGate.apply(torch.tensor([0.0, 1.0]), torch.ones(2))
    assert by_hand.tolist() == pytest.approx([0.0, 1 / (1 + 2.718281828459045**-1)])


def test_norm_by_hand() -> None:
    """(3, 4) has root mean square sqrt(12.5)."""
    out = fused._RmsNorm.apply(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 2.0]), 0.0)
    assert out[0].tolist() == pytest.approx([3 / 12.5**0.5, 8 / 12.5**0.5])


def random_norm(kind: type, dtype: torch.dtype = torch.float32) -> Any:
    norm = kind(WIDTH).to(dtype)
    with torch.no_grad():
        norm.weight.normal_(generator=torch.Generator().manual_seed(5))
    return norm.requires_grad_(False)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_norm_is_transformers(dtype: torch.dtype, tolerance: float) -> None:
    """Output and input gradient of a frozen RMS norm."""
    ours = nn.Sequential(random_norm(LlamaRMSNorm, dtype))
    theirs = copy.deepcopy(ours)
    assert fused.install(ours)["norm"] == 1
    assert "forward" in ours[0].__dict__
    assert_equal(outcome(ours, rows(dtype)), outcome(theirs, rows(dtype)), tolerance)


def test_what_computes_something_else_is_left_alone() -> None:
    """Gemma's norm multiplies by 1 + weight; a trainable norm needs its weight's gradient; a layer norm has a mean."""
    for module in (random_norm(GemmaRMSNorm), LlamaRMSNorm(WIDTH), nn.LayerNorm(WIDTH).requires_grad_(False)):
        assert fused.install(nn.Sequential(module))["norm"] == 0
        assert "forward" not in module.__dict__


def gated(activation: str = "silu", dtype: torch.dtype = torch.float32) -> nn.Sequential:
    config = LlamaConfig(hidden_size=WIDTH, intermediate_size=24, num_attention_heads=2, hidden_act=activation)
    torch.manual_seed(0)
    return nn.Sequential(LlamaMLP(config).to(dtype))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_gated_mlp_is_transformers(dtype: torch.dtype, tolerance: float) -> None:
    """Output and all gradients, weights included where they train."""
    ours = gated(dtype=dtype)
    theirs = copy.deepcopy(ours)
    assert fused.install(ours)["gated_mlp"] == 1
    assert_equal(outcome(ours, rows(dtype)), outcome(theirs, rows(dtype)), tolerance)


def test_another_activation_is_left_alone() -> None:
    """What the probe compares are numbers, not names."""
    for activation in ("gelu", "relu"):
        assert fused.install(gated(activation))["gated_mlp"] == 0


COUNTS = {
    "llama": {"lora": 14, "norm": 5, "gated_mlp": 2},
    "qwen2": {"lora": 14, "norm": 5, "gated_mlp": 2},
    "qwen3": {"lora": 14, "norm": 9, "gated_mlp": 2},  # and two of queries and keys in each layer
    "gemma": {"lora": 14, "norm": 0, "gated_mlp": 0},  # 1 + weight, gelu
    "phi3": {"lora": 8, "norm": 5, "gated_mlp": 0},  # one projection for gate and up
    "gpt2": {"lora": 0, "norm": 0, "gated_mlp": 0},  # Conv1D, layer norms
}


@pytest.mark.parametrize("architecture", COUNTS)
def test_install_counts_and_changes_no_number(architecture: str) -> None:
    """What is taken in whole models, and that log-probabilities and gradients stay as they were."""
    model = tiny.packed(architecture)
    model.model = tiny.with_lora(model.model)
    before = tiny.gradients(model, values := model(tiny.BATCH))
    assert fused.install(model.model) == COUNTS[architecture]
    after = tiny.gradients(model, again := model(tiny.BATCH))
    assert (again - values).abs().max() <= 1e-5
    tiny.assert_same_gradients(after, before)


@pytest.fixture
def with_dropout() -> Iterator[nn.Module]:
    """A whole model in training mode whose adapter has been trained with dropout."""
    model = tiny.with_lora(tiny.make("llama"), lora_dropout=0.5)
    yield model.train()


def test_probes_leave_no_trace(with_dropout: nn.Module) -> None:
    """No gradient in any weight, no random number drawn, mode as it was; dropout hides no module from them."""
    state = torch.get_rng_state()
    assert fused.install(with_dropout) == COUNTS["llama"]
    assert all(weight.grad is None for weight in with_dropout.parameters())
    assert all(module.training for module in with_dropout.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_fewer_copies_are_kept_for_the_backward_pass() -> None:
    """What it is for: the fused linear map keeps less than peft's."""

    def kept(model: Any) -> int:
        sizes: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            sizes[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return tensor

        x = torch.randn(1, 64, WIDTH, dtype=torch.bfloat16, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            out = model(x)
        del out
        return sum(sizes.values())

    plain, fast = adapted(torch.bfloat16), adapted(torch.bfloat16)
    fused.install(fast)
    assert kept(fast) < kept(plain)


class GatedNorm(LlamaRMSNorm):
    """As hybrid models have it: a gate beside the rows, which may be left out."""

    def forward(self, hidden_states: Tensor, gate: Tensor | None = None) -> Tensor:
        normed = super().forward(hidden_states)
        return normed if gate is None else normed * torch.nn.functional.silu(gate)


class NormWithBias(LlamaRMSNorm):
    """A frozen weight and a bias that learns."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__(hidden_size)
        self.bias = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, hidden_states: Tensor) -> Tensor:
        return super().forward(hidden_states) + self.bias


class DroppingMlp(LlamaMLP):
    """Equal to a plain gated MLP in evaluation only."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(x), 0.5, self.training)


class FailingNorm(LlamaRMSNorm):
    """Raises on the rows of a probe."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        raise RuntimeError("four dimensions are needed")


def test_another_signature_an_exception_or_a_bias_that_learns_leaves_the_module_alone() -> None:
    """Each computes the same as the replacement for some calls, and not for all."""
    bias = NormWithBias(WIDTH)
    bias.weight.requires_grad_(False)
    config = LlamaConfig(hidden_size=WIDTH, intermediate_size=24, num_attention_heads=2)
    modules = (random_norm(GatedNorm), random_norm(FailingNorm), bias, DroppingMlp(config))
    for module in modules:
        assert fused.install(nn.Sequential(module)) == {"lora": 0, "norm": 0, "gated_mlp": 0}
        assert "forward" not in module.__dict__


def test_a_norm_of_other_types_or_widths_than_the_probe_saw_computes_its_own() -> None:
    """bf16 rows through a fp32 norm are fp32 (the weight's type), as the module's own are."""
    norm = random_norm(LlamaRMSNorm)
    own = copy.deepcopy(norm)
    fused.install(nn.Sequential(norm))
    x = rows(torch.bfloat16)
    assert norm(x).dtype == own(x).dtype == torch.float32
    assert torch.equal(norm(x), own(x))
    assert torch.equal(norm(rows()[..., :1]), own(rows()[..., :1]))


def test_what_others_have_replaced_is_left_alone_and_ours_is_not_replaced_twice() -> None:
    """A forward that a tool put on the module stays; a second install finds what the first one did."""
    theirs = random_norm(LlamaRMSNorm)
    theirs.forward = lambda x: x
    ours = random_norm(LlamaRMSNorm)
    model = nn.Sequential(theirs, ours)
    assert fused.install(model)["norm"] == 1
    before = ours.forward
    assert fused.install(model)["norm"] == 1
    assert ours.forward == before
    assert theirs(x := rows()) is x


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_that_learn_keep_their_gradients(bias: str) -> None:
    """peft's `bias` lets the base's biases learn beside the matrices."""
    model = adapted(bias=bias)
    assert any(name.endswith("first.base_layer.bias") for name, w in model.named_parameters() if w.requires_grad)
    assert_fused_is_composed(model)


def test_biases_of_a_gated_mlp_keep_their_gradients() -> None:
    """Biases of the three projections, and their frozen weights have none."""
    config = LlamaConfig(hidden_size=WIDTH, intermediate_size=24, num_attention_heads=2, mlp_bias=True)
    torch.manual_seed(0)
    ours = nn.Sequential(LlamaMLP(config))
    for name, weight in ours.named_parameters():
        weight.requires_grad_(name.endswith("bias"))
    theirs = copy.deepcopy(ours)
    assert fused.install(ours)["gated_mlp"] == 1
    found = outcome(ours, rows())
    assert sum(name.endswith("bias") for name in found) == 3
    assert_equal(found, outcome(theirs, rows()), 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [64, 2048])
def test_the_probes_tolerance_follows_width_and_type(width: int, dtype: torch.dtype) -> None:
    """Wide layers and bf16 are recognised, and an epsilon or an activation of another kind is still told apart."""
    norm = LlamaRMSNorm(width).to(dtype).requires_grad_(False)
    shifted = GemmaRMSNorm(width).to(dtype).requires_grad_(False)
    with torch.no_grad():
        shifted.weight.normal_(std=0.3)
    sizes = {"hidden_size": width, "intermediate_size": 96, "num_attention_heads": 2}
    plain, other = (LlamaMLP(LlamaConfig(**sizes, hidden_act=act)).to(dtype) for act in ("silu", "gelu"))
    assert fused.install(nn.Sequential(norm, plain)) == {"lora": 0, "norm": 1, "gated_mlp": 1}
    assert fused.install(nn.Sequential(shifted, other)) == {"lora": 0, "norm": 0, "gated_mlp": 0}
