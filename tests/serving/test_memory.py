"""Memory of sequences: what is counted is what is held, and what cannot be held is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from prefine.generation.sampling import Sampling
from prefine.generation.slot_writer import SlotWriter
from prefine.generation.writer import Request
from prefine.models.forward.packed import PackedModel
from prefine.models.forward.path_probe import choose_path
from prefine.serving import memory
from prefine.serving.memory import context_within, room_of, scoring_room, token_bytes
from tests.models import tiny
from tests.serving.live import make_service, running


@pytest.fixture(scope="module")
def model() -> PackedModel:
    made = PackedModel(tiny.make("llama"), torch.float32).eval()
    assert choose_path(made) is None
    return made


def test_a_token_takes_what_is_counted(model: PackedModel) -> None:
    writer = SlotWriter(model, SimpleNamespace(all_special_tokens=(), decode=lambda *_, **__: ""), 2)
    for _ in range(2):
        writer.add(Request([5, 6, 7], Sampling(9), frozenset()))
    writer.step()
    assert writer.bytes == 2 * 32 * token_bytes(model)


def test_room_is_a_share_of_free_memory(model: PackedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 1_000_000 * token_bytes(model) / 1e9
    monkeypatch.setattr(memory, "device_report", lambda device: {"memory_free_gb": free})
    assert room_of(model, 1, 0) == 750_000
    assert room_of(model, 2, 5_000) == 370_000
    assert room_of(model, 2, 500_000) == 64


def test_the_context_is_the_least_of_models_memorys_and_users(model: PackedModel) -> None:
    own = model.causal.config.max_position_embeddings
    assert context_within(model, 1 << 40, None) == own
    assert context_within(model, 1 << 40, own - 1) == own - 1
    assert context_within(model, 1 << 40, own + 1) == own
    room = 90
    held = context_within(model, room, None)
    assert held == 48
    writer = SlotWriter(model, None, 1)
    assert writer.room(held, 1) <= room


def test_room_for_scores_is_a_share_of_free_memory(model: PackedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    config = model.causal.config
    row = 8 * config.hidden_size + 3 * config.intermediate_size + 3 * 512 * config.num_attention_heads
    monkeypatch.setattr(memory, "device_report", lambda device: {"memory_free_gb": 1000 * row * 4 / 0.15 / 1e9})
    assert scoring_room(model.causal) in (999, 1000)


def test_what_is_longer_than_the_context_is_refused(tiny_model: Path) -> None:
    with running(make_service([tiny_model], context=64)) as live:
        assert live.get("/v1/models").json()["data"][0]["max_model_len"] == 64
        assert live.post("/v1/completions", {"prompt": "x" * 50, "max_tokens": 14}).status_code == 200
        refused = live.post("/v1/completions", {"prompt": "x" * 50, "max_tokens": 15})
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    assert "the context is 64 tokens" in refused.json()["error"]["message"]
