"""An adapter on principal components computes and learns what peft's PiSSA does, on a base that stays as it is."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from pydantic import ValidationError
from torch import Tensor

from prefine.errors import ModelError
from prefine.models.forward.active_adapter import using_adapter
from prefine.models.loading.adapter_form import adapter_form, trained_weights
from prefine.models.loading.adapters import put_adapter
from prefine.models.loading.location import Location
from prefine.models.loading.pissa import principal
from prefine.models.shared_base import add_copy
from prefine.recipe.sections import LoraSection
from prefine.recipe.sft import SftRecipe
from tests.models import tiny

IDS = torch.arange(3, 15)[None]
RANK, ALPHA = 3, 6.0
HERE = Location(name="", base="", base_name="", adapter=None, tokenizer="")


def adapted(base: Any, **settings: Any) -> Any:
    """A copy of a base with a new adapter, as a recipe's lora section asks for it."""
    section = LoraSection(**{"r": RANK, "alpha": ALPHA, "init": "pissa", **settings})
    return put_adapter(copy.deepcopy(base), HERE, section, True, scores=False)


def pefts(base: Any, **settings: Any) -> Any:
    config = LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        init_lora_weights="pissa",
        **settings,
    )
    return get_peft_model(copy.deepcopy(base), config)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS).logits
    return found


def learn(model: Any, steps: int = 4) -> list[float]:
    """Plain gradient steps on a language model's loss."""
    losses = []
    weights = [p for p in model.parameters() if p.requires_grad]
    for _ in range(steps):
        loss = model(input_ids=IDS, labels=IDS).loss
        losses.append(loss.item())
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for weight in weights:
                weight.sub_(0.5 * weight.grad)
    return losses


@pytest.mark.parametrize("settings", [{}, {"rslora": True}, {"dora": True}])
def test_it_learns_what_pefts_pissa_learns(settings: dict[str, Any], tmp_path: Path) -> None:
    """Loss after loss, and the logits in the end; saved, it is a plain adapter of the original base, with the same."""
    base = tiny.make("llama")
    ours, theirs = adapted(base, **settings), pefts(base, **{f"use_{name}": on for name, on in settings.items()})
    before = logits(base)
    torch.testing.assert_close(logits(ours), before, rtol=0, atol=2e-5)
    mine, peers = learn(ours), learn(theirs)
    assert mine[-1] < mine[0] - 0.01
    assert mine == pytest.approx(peers, abs=2e-5)
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=0, atol=2e-4)
    with using_adapter(ours, None):
        assert torch.equal(logits(ours), before), "the base is not what it was"
    with using_adapter(theirs, None):
        assert (logits(theirs) - before).abs().max() > 1e-3, "peft's has another base, which is why ours is made so"
    ours.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    torch.testing.assert_close(logits(again), logits(ours), rtol=0, atol=1e-5)
    assert again.peft_config["default"].r == 2 * RANK


def test_what_is_held_stays_and_is_not_counted() -> None:
    model = adapted(tiny.make("llama"))
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight"
    weight = dict(model.named_parameters())[name]
    before = weight.detach().clone()
    learn(model, 1)
    moved = (weight != before).any(0)
    assert moved.tolist() == [True] * RANK + [False] * RANK
    assert trained_weights(model) == trained_weights(pefts(tiny.make("llama")))
    assert adapter_form(model, fused=True) == (
        "PiSSA: starts on 3 principal components, saved as rank 6 on the original base"
    )


def test_a_copy_that_learns_holds_the_same_half() -> None:
    """A critic's own adapter begins as the policy's does."""
    model = adapted(tiny.make("llama"))
    added = add_copy(model, "critic", learns=True)
    with using_adapter(model, "critic"):
        model(input_ids=IDS, labels=IDS).loss.backward()
    for name, weight in added.items():
        held = weight.grad[RANK:] if "lora_A" in name else weight.grad[:, RANK:]
        assert not held.any()
    assert any(weight.grad.any() for weight in added.values())


def test_the_best_approximation_of_a_rank() -> None:
    """diag(3, 2, 1) at scale 2 and rank 2: 2 B A is diag(3, 2, 0), and A and B share the roots."""
    for init in ("pissa", "pissa_niter_8"):
        down, up = principal(torch.diag(torch.tensor([3.0, 2.0, 1.0])), 2, 2.0, init)
        torch.testing.assert_close(2 * up @ down, torch.diag(torch.tensor([3.0, 2.0, 0.0])), rtol=0, atol=1e-4)
        assert down.norm().item() == pytest.approx(2.5**0.5, abs=1e-4)


def test_what_cannot_start_there() -> None:
    with pytest.raises(ModelError, match=r"principal components, fewer than lora\.r 500"):
        adapted(tiny.make("llama"), r=500)
    with pytest.raises(ModelError, match="embed_tokens is not a linear layer"):
        adapted(tiny.make("llama"), targets=["embed_tokens"])


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"lora": {"init": "gaussian"}}, "write default, pissa or pissa_niter_N, for example pissa_niter_4"),
        ({"lora": {"init": "pissa_niter_0"}}, "write default, pissa"),
        ({"lora": {"init": "pissa", "dropout": 0.1}}, "dropout 0.1 would drop the principal components"),
        (
            {"lora": {"init": "pissa"}, "model": {"quantization": "nf4"}},
            "lora.init pissa needs whole weights, but model.quantization is nf4",
        ),
        (
            {"lora": {"init": "pissa"}, "training": {"weight_decay": 0.1}},
            "training.weight_decay 0.1 would pull the weights that lora.init pissa starts on",
        ),
    ],
)
def test_recipes_that_cannot_be(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        SftRecipe.model_validate(values)
