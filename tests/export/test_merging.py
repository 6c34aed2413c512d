"""Deltas go onto the weights that training saw, in float32, rounded once; ties and ranges are seen to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from prefine.errors import ModelError
from prefine.export import source as sources
from prefine.export.merged import require_room_for_merged
from prefine.export.merging import dequantised
from prefine.export.source import ExportSource
from prefine.models.loading.load import LoadedModel, load_model, save_model
from prefine.recipe.sections import LoraSection, named_model
from tests.models import tiny

WEIGHTS = "model.safetensors"
QUERY = "model.layers.0.self_attn.q_proj.weight"


def adapter(
    folder: Path, base: Path, *, scale: float = 0.1, targets: Any = "all-linear", **settings: Any
) -> LoadedModel:
    """A random adapter on a base, saved to `folder`."""
    section = named_model(str(base), device="cpu", dtype="float32", **settings)
    torch.manual_seed(0)
    loaded = load_model(section, LoraSection(r=4, alpha=8, targets=targets))
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in loaded.trainable().values():
            weight.copy_(torch.randn(weight.shape, generator=draw) * scale)
    save_model(loaded, folder)
    return loaded


def delta(folder: Path, module: str) -> Tensor:
    """alpha / r times B A of a saved adapter, by hand."""
    saved = load_file(folder / "adapter_model.safetensors")
    name = f"base_model.model.{module}"
    return 2.0 * saved[f"{name}.lora_B.weight"] @ saved[f"{name}.lora_A.weight"]


def merged(name: Path, out: Path, dtype: str) -> dict[str, Tensor]:
    out.mkdir()
    ExportSource.open(str(name)).save_merged(out, dtype)
    return load_file(out / WEIGHTS)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_merged_weight_is_the_sum_rounded_once(tmp_path: Path, dtype: str) -> None:
    base = tiny.save_folder(tmp_path / "base")
    adapter(tmp_path / "adapter", base)
    found = merged(tmp_path / "adapter", tmp_path / "out", dtype)
    before = load_file(base / WEIGHTS)
    assert {tensor.dtype for tensor in found.values()} == {getattr(torch, dtype)}
    assert found.keys() == before.keys()
    expected = before[QUERY] + delta(tmp_path / "adapter", QUERY.removesuffix(".weight"))
    apart = (found[QUERY].float() - expected).abs().max()
    unit = {"float32": 2**-22, "bfloat16": 2**-8, "float16": 2**-11}[dtype]  # of the largest entry, a whole step
    assert apart <= unit * expected.abs().max()
    if dtype != "float32":
        assert (found[QUERY] == expected.to(getattr(torch, dtype))).float().mean() > 0.999
    assert torch.equal(
        found["model.embed_tokens.weight"].float(),
        before["model.embed_tokens.weight"].to(getattr(torch, dtype)).float(),
    )


def test_a_tiny_delta_survives_a_quantised_base(tmp_path: Path) -> None:
    """Merged into 4-bit weights, a delta of a thousandth of a step would be rounded off (pitfall 10)."""
    pytest.importorskip("bitsandbytes")
    base = tiny.save_folder(tmp_path / "base")
    loaded = adapter(tmp_path / "adapter", base, scale=1e-3, quantization="nf4")
    seen = {name: dequantised(m) for name, m in loaded.packed.model.named_modules() if dequantised(m) is not None}
    name = "base_model.model.model.layers.0.self_attn.q_proj.base_layer"
    source = ExportSource.open(str(tmp_path / "adapter"))
    source.quantization = "nf4"  # as a run's recipe says
    (tmp_path / "out").mkdir()
    source.save_merged(tmp_path / "out", "float32")
    found = load_file(tmp_path / "out" / WEIGHTS)
    whole = load_file(base / WEIGHTS)
    change = delta(tmp_path / "adapter", QUERY.removesuffix(".weight"))
    assert (whole[QUERY] - seen[name]).abs().max() > 100 * change.abs().max()  # quantisation is much coarser
    assert torch.allclose(found[QUERY] - seen[name], change, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_dequantised_weights_are_those_of_the_products(tmp_path: Path, quantization: str) -> None:
    """A layer's answer to unit vectors is its weight; int8 rounds the vectors, too, but units exactly."""
    pytest.importorskip("bitsandbytes")
    base = tiny.save_folder(tmp_path / "base")
    section = named_model(str(base), device="cpu", dtype="float32", quantization=quantization)
    model = load_model(section, None, trainable=False).packed.causal
    layers = [module for module in model.modules() if dequantised(module) is not None]
    assert len(layers) >= 14
    with torch.no_grad():
        for layer in layers:
            weight = dequantised(layer)
            assert weight is not None
            found = layer(torch.eye(weight.shape[1])).T
            assert torch.allclose(found, weight, rtol=1e-2, atol=1e-3 * float(weight.abs().max()))


def test_an_adapter_on_a_tied_head_leaves_the_embedding_alone(tmp_path: Path) -> None:
    base = tiny.save_folder(tmp_path / "base", tie_word_embeddings=True)
    adapter(tmp_path / "adapter", base, targets=["lm_head", "q_proj"])
    found = merged(tmp_path / "adapter", tmp_path / "out", "float32")
    before = load_file(base / WEIGHTS)
    assert "lm_head.weight" not in before
    embedding = before["model.embed_tokens.weight"]
    assert torch.equal(found["model.embed_tokens.weight"], embedding)
    assert torch.allclose(found["lm_head.weight"], embedding + delta(tmp_path / "adapter", "lm_head"), atol=1e-6)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(model.lm_head.weight, found["lm_head.weight"])
    assert not torch.equal(model.lm_head.weight, model.get_input_embeddings().weight)


@pytest.mark.parametrize(
    ("tied", "targets", "added"),
    [(True, ["lm_head", "q_proj"], True), (True, ["q_proj"], False), (False, ["lm_head", "q_proj"], False)],
)
def test_room_for_the_head_that_a_merge_separates_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tied: bool, targets: list[str], added: bool
) -> None:
    base = tiny.save_folder(tmp_path / "base", tie_word_embeddings=tied)
    adapter(tmp_path / "adapter", base, targets=targets)
    weights = load_file(base / WEIGHTS)
    whole = sum(each.numel() for each in weights.values())
    expected = whole + (weights["model.embed_tokens.weight"].numel() if added else 0)
    asked = []
    monkeypatch.setattr("prefine.export.merged.require_disk", lambda folder, needed: asked.append(needed))
    monkeypatch.setattr("prefine.export.merged.require_memory", lambda needed, what: asked.append(needed))
    source = ExportSource.open(str(tmp_path / "adapter"))
    require_room_for_merged(source, tmp_path / "out", "bfloat16")
    assert asked == [2 * expected, 4 * expected]
    found = merged(tmp_path / "adapter", tmp_path / "out", "bfloat16")
    assert sum(each.numel() for each in found.values()) == expected


def test_what_stays_tied_is_saved_once(tmp_path: Path) -> None:
    base = tiny.save_folder(tmp_path / "base", tie_word_embeddings=True)
    adapter(tmp_path / "adapter", base, targets=["q_proj"])
    found = merged(tmp_path / "adapter", tmp_path / "out", "bfloat16")
    assert "lm_head.weight" not in found
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is True
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()


def test_weights_beyond_the_range_of_a_type_are_refused(tmp_path: Path) -> None:
    base = tiny.save_folder(tmp_path / "base")
    adapter(tmp_path / "adapter", base, scale=300.0)
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match=r"is not finite in float16.*--dtype float32 or bfloat16"):
        ExportSource.open(str(tmp_path / "adapter")).save_merged(tmp_path / "out", "float16")


def test_the_source_stays_whole_until_it_is_merged(tmp_path: Path) -> None:
    """The reference is computed from the adapter on its base, not from what is written."""
    adapter(tmp_path / "adapter", tiny.save_folder(tmp_path / "base"))
    source = sources.ExportSource.open(str(tmp_path / "adapter"))
    assert any("lora_A" in name for name, _ in source.loaded.packed.model.named_parameters())
