"""4- and 8-bit base weights through bitsandbytes: really small, still right, and an adapter learns on them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor

from prefine.data.tokens.trees import collate
from prefine.errors import MissingDependencyError
from prefine.models.loading.load import LoadedModel, load_model, save_model
from prefine.recipe.sections import LoraSection, ModelSection
from tests.models import tiny
from tests.models.tiny import alone, assert_same_gradients, tree

BATCH = collate([tree(9, 8, 7, vocabulary=256), tree(3, 12, vocabulary=256)])
LORA = LoraSection(r=4, alpha=8.0)
# How far log-probabilities may be from the fp32 model's, nats, on average: random weights are the hardest to round.
NEAR = {"nf4": 0.25, "int8": 0.05}
LINEAR = {"nf4": "Linear4bit", "int8": "Linear8bitLt"}


def load(folder: Path, quantization: str, dtype: str = "float32", trainable: bool = True) -> LoadedModel:
    section = ModelSection(name=str(folder), device="cpu", dtype=dtype, quantization=quantization)  # type: ignore[arg-type]
    return load_model(section, LORA if trainable else None, trainable=trainable)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama, wide enough for blocks of 64 weights."""
    sizes = {"hidden_size": 64, "intermediate_size": 128}
    return tiny.save_folder(tmp_path_factory.mktemp("base") / "llama", **sizes)


def logprobs(loaded: LoadedModel) -> Tensor:
    loaded.packed.eval()
    with torch.no_grad():
        return loaded.packed(BATCH)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("quantization", NEAR)
def test_quantised_is_near_and_learns(quantization: str, dtype: str, folder: Path, tmp_path: Path) -> None:
    """Packed, near the fp32 model, finite gradients in A and B only; saved as an adapter that loads again."""
    loaded = load(folder, quantization, dtype)
    assert loaded.fallback is None
    exact = logprobs(load(folder, "none"))
    apart = (logprobs(loaded) - exact).abs()
    assert 0 < apart.mean() <= NEAR[quantization]
    weights = loaded.trainable()
    assert {name.split(".")[-3] for name in weights} == {"lora_A", "lora_B"}
    loaded.packed.train()
    gradients = torch.autograd.grad(-loaded.packed(BATCH).mean(), list(weights.values()))
    assert all(g.isfinite().all() for g in gradients)
    assert sum(g.abs().sum() for g in gradients) > 0
    before = -logprobs(loaded).mean()
    with torch.no_grad():
        for weight, gradient in zip(weights.values(), gradients, strict=True):
            weight.sub_(0.2 * gradient)
    assert -logprobs(loaded).mean() < before
    save_model(loaded, tmp_path / "adapter")
    assert torch.equal(logprobs(load(tmp_path / "adapter", quantization, dtype, trainable=False)), logprobs(loaded))


@pytest.mark.parametrize("quantization", NEAR)
def test_quantised_rows_are_alone(quantization: str, folder: Path) -> None:
    """Packed on quantised weights as one by one: to fp32 rounding, and where int8 rounds activations to that."""
    loaded = load(folder, quantization)
    assert (logprobs(loaded) - alone(loaded.packed, BATCH)).abs().max() <= (1e-4 if quantization == "nf4" else 0.05)


def test_gradients_pass_through_4_bit_weights_after_an_evaluation(folder: Path) -> None:
    """They are those of the same weights written out in fp32 (bitsandbytes' evaluation layout let none through)."""
    from bitsandbytes.functional import dequantize_4bit

    loaded = load(folder, "nf4")
    with torch.no_grad():
        for name, weight in loaded.trainable().items():
            weight.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    written_out = load(folder, "none")
    theirs = dict(written_out.packed.named_modules())
    with torch.no_grad():
        for name, weight in written_out.trainable().items():
            weight.copy_(loaded.trainable()[name])
        for name, module in loaded.packed.named_modules():
            if name.endswith(".base_layer"):
                theirs[name].weight.copy_(dequantize_4bit(module.weight.data, module.weight.quant_state))
    assert (logprobs(loaded) - logprobs(written_out)).abs().max() <= 1e-4
    assert_same_gradients(gradients(loaded), gradients(written_out), 1e-3)


def gradients(loaded: LoadedModel) -> dict[str, Tensor]:
    loaded.packed.train()
    weights = loaded.trainable()
    values = loaded.packed(BATCH)
    loss = (values * torch.linspace(-1, 2, len(values))).sum()
    return dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))


@pytest.mark.parametrize(("quantization", "bytes_per_weight"), [("nf4", 0.5), ("int8", 1.0)])
def test_base_weights_are_really_quantised(quantization: str, bytes_per_weight: float, folder: Path) -> None:
    """All linear maps of the layers, half a byte or one byte a weight; the head stays as it is."""
    loaded = load(folder, quantization)
    layers = [m for n, m in loaded.packed.named_modules() if n.endswith(".base_layer")]
    assert len(layers) == 14
    assert {type(layer).__name__ for layer in layers} == {LINEAR[quantization]}
    stored = sum(layer.weight.numel() * layer.weight.element_size() for layer in layers)
    weights = sum(layer.in_features * layer.out_features for layer in layers)
    assert stored == bytes_per_weight * weights
    assert type(loaded.packed.logits_head().module) is torch.nn.Linear
    assert loaded.describe()["parameters"] == load(folder, "none").describe()["parameters"]
    if quantization == "nf4":
        states = [layer.weight.quant_state for layer in layers]
        assert all(state.quant_type == "nf4" and state.nested for state in states)  # double quantisation


def test_without_bitsandbytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The missing package is named with the command that installs it."""
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else found(name, *a)
    )
    with pytest.raises(MissingDependencyError, match=r"nf4 needs the package bitsandbytes.*prefine\[quantization\]"):
        load(folder, "nf4")
