"""The probe at load accepts right models of real vocabulary and depth in every type, and still finds faults there.

Its tolerance is measured on the model at hand: constants that two-layer models meet are wrong for thirty layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from prefine.data.tokens.trees import PackedBatch
from prefine.models.forward import attention
from prefine.models.forward.packed import PackedModel, ScoreHead
from prefine.models.forward.path_probe import _apart, choose_path, probe, probe_batch, take_padded_path
from tests.models import tiny

VOCABULARY = 49_152
TYPES = [torch.float32, torch.bfloat16]


def causal(layers: int, dtype: torch.dtype, architecture: str = "llama", gain: float = 1.0, **settings: Any) -> Any:
    """Narrow, deep, with a real vocabulary; a larger gain makes it as sensitive as trained models, and more."""
    sizes = {"vocab_size": VOCABULARY, "num_hidden_layers": layers, "hidden_size": 64, "intermediate_size": 96}
    model = tiny.make(architecture, **sizes, **settings)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(gain)
    return model.to(dtype)


def packed(layers: int, dtype: torch.dtype, *args: Any, **settings: Any) -> PackedModel:
    model = PackedModel(causal(layers, dtype, *args, **settings), dtype)
    assert choose_path(model) is None
    return model


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("layers", "gain"), [(24, 1.0), (30, 4.0)])
def test_deep_models_are_packed(layers: int, gain: float, dtype: torch.dtype) -> None:
    """Rounding grows with depth and with weights: up to 1e-4 in float32 and 0.7 nats in bf16 here."""
    packed(layers, dtype, gain=gain)


@pytest.mark.parametrize("dtype", TYPES)
def test_deep_reward_models_are_packed(dtype: torch.dtype) -> None:
    """Scores of any size, of few answers."""
    config = causal(24, dtype).config
    config.num_labels, config.pad_token_id = 1, None
    model = AutoModelForSequenceClassification.from_config(config)
    tiny.random_weights(model)
    model.score.weight.data.mul_(100)
    scorer = PackedModel(model.to(dtype).eval(), dtype, ScoreHead())
    model.score.float()
    assert choose_path(scorer) is None


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "cohere2"])
def test_a_head_that_may_take_chosen_rows_does(architecture: str, dtype: torch.dtype) -> None:
    """On the padded path, with the logits' own rounding: their size, the width and the type."""
    model = PackedModel(causal(24, dtype, architecture), dtype)
    take_padded_path(model)
    assert model.path.whole_logits is False


@pytest.mark.parametrize("dtype", TYPES)
def test_a_head_with_a_scale_that_no_config_names_makes_its_own_logits(dtype: torch.dtype) -> None:
    """A twentieth more than the head's product."""

    class Scaled(torch.nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (1.0 if x.dim() == 2 else 1.05)

    model = PackedModel(causal(24, dtype), dtype)
    model.causal.lm_head.__class__ = Scaled
    take_padded_path(model)
    assert model.path.whole_logits is True


def positions_run_on(batch: PackedBatch) -> PackedBatch:
    """Positions count along the row, over all trees."""
    return replace(batch, position_ids=torch.arange(batch.tokens)[None])


def second_answers_begin_late(batch: PackedBatch) -> PackedBatch:
    """Every second answer's positions go on from the first answer's end."""
    positions = batch.position_ids.clone()
    for own, prompt in attention.runs(batch.segments):
        if prompt:
            positions[0, own.start : own.stop] += 4
    return replace(batch, position_ids=positions)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("layers", [24, 30])
@pytest.mark.parametrize("wrong", [positions_run_on, second_answers_begin_late])
def test_wrong_positions_are_found(
    wrong: Callable[[PackedBatch], PackedBatch], layers: int, dtype: torch.dtype
) -> None:
    """Learned positions leave no room for rounding; rotary ones are relative, so that running on alone is harmless."""
    model = packed(layers, dtype, "gpt2" if wrong is positions_run_on else "llama", **_learned(wrong, layers))
    batch = probe_batch(VOCABULARY, model.device)
    with torch.no_grad():
        apart, tolerance = _apart_padded(model, batch, batch)
        assert apart <= tolerance
        apart, tolerance = _apart_padded(model, batch, wrong(batch))
    assert apart > 1.5 * tolerance


def _learned(wrong: Any, layers: int) -> dict[str, Any]:
    return {"n_embd": 64, "n_layer": layers, "n_positions": 256} if wrong is positions_run_on else {}


def _apart_padded(model: PackedModel, batch: PackedBatch, given: PackedBatch) -> tuple[float, float]:
    ours = model(given)
    model.path.packed = False
    try:
        return _apart(model, batch, ours)
    finally:
        model.path.packed = True


def reaches(window: int) -> Callable[..., Any]:
    """Attention with a window of this many tokens, whatever the layer says."""

    def attend(*args: Any, sliding_window: int | None = None, **kwargs: Any) -> Any:
        for traffic in attention._watched:
            traffic.windows_told.add(tiny.WINDOW)
        return attention.packed_attention(*args, sliding_window=window, **kwargs)

    return attend


def leaks(*args: Any, **kwargs: Any) -> Any:
    """A thousandth of the token before, whosesoever it is."""
    out, weights = attention.packed_attention(*args, **kwargs)
    return out + 1e-3 * out.roll(1, dims=1), weights


@pytest.mark.parametrize("dtype", TYPES)
def test_a_wrong_window_and_a_leak_are_found(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """In 24 layers and a real vocabulary."""
    from transformers import AttentionInterface

    model = packed(24, dtype, "mistral", sliding_window=tiny.WINDOW)
    for wrong, message in ((reaches(2), "differ by"), (leaks, "another sequence")):
        monkeypatch.setitem(AttentionInterface._global_mapping, attention.NAME, wrong)
        assert message in str(probe(model))
