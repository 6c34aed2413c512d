"""Before its first step DPO's policy is its reference: margin 0 and loss ln 2, whatever the policy is (pitfall 12)."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from prefine.errors import TrainingError
from prefine.recipe.stage import StageRecipe
from prefine.training.stages import reference
from prefine.training.stages.reference import reference_logprobs
from tests.training import tiny

Make = Callable[..., StageRecipe]
LN_2 = math.log(2)
POLICIES: dict[str, dict[str, Any]] = {
    "a fresh adapter": {"lora.dropout": 0.0},
    "a fresh adapter with dropout": {"lora.dropout": 0.5},
    "all weights": {"lora": None},
    "principal components": {"lora.init": "pissa", "lora.dropout": 0.0},
    "magnitudes and directions": {"lora.dora": True, "lora.rslora": True},
    "magnitudes and directions in bf16": {"lora.dora": True, "lora.dropout": 0.0, "model.dtype": "bfloat16"},
    "padded rows": {"model.attn_implementation": "sdpa"},
    "bf16": {"model.dtype": "bfloat16"},
}


def checks(run: str) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in tiny.manifest(Path(run))["self_checks"]}


@pytest.mark.parametrize("policy", POLICIES)
def test_first_loss_is_ln_2(policy: str, make: Make) -> None:
    made = make("dpo", changes={"training.max_steps": 1, **POLICIES[policy]})
    tiny.train(made)
    tolerance = 2e-2 if "bf16" in policy else 1e-6
    first = tiny.metrics(Path(made.run))[0]
    assert (first["kind"], first["step"]) == ("heldout", 0)
    assert first["loss"] == pytest.approx(LN_2, abs=tolerance)
    assert first["margin"] == pytest.approx(0, abs=tolerance)
    assert checks(made.run)["first loss"]["passed"]
    assert abs(float(checks(made.run)["first margin"]["value"])) <= tolerance


def test_first_loss_is_ln_2_for_a_loaded_adapter(make: Make) -> None:
    """The reference is the adapter as SFT left it, not the base model under it; dropout and all."""
    sft = make("sft", "sft", {"training.learning_rate": 5e-2})
    tiny.train(sft)
    on_base, on_sft = make("dpo", "on-base"), make("dpo", "on-sft", {"model.name": sft.run})
    tiny.train(on_base)
    tiny.train(on_sft)
    base, first = tiny.metrics(Path(on_base.run))[0], tiny.metrics(Path(on_sft.run))[0]
    assert first["loss"] == pytest.approx(LN_2, abs=1e-6)
    assert first["margin"] == pytest.approx(0, abs=1e-6)
    assert first["logp_chosen"] > base["logp_chosen"] + 10  # SFT taught it something
    assert checks(on_sft.run)["first loss"]["passed"]


@pytest.mark.parametrize("loss", ["hinge", "ipo", "simpo"])
def test_the_check_is_of_the_margin_whatever_the_loss(loss: str, make: Make) -> None:
    """Other losses are not ln 2 at margin 0, and SimPO has no reference to check."""
    made = make("dpo", changes={"training.max_steps": 1, "dpo.loss": loss})
    tiny.train(made)
    assert ("first loss" in checks(made.run)) == (loss != "simpo")


def test_a_wrong_reference_stops_the_run(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chosen answers less likely under the reference by half a nat, as another model's would be."""

    def wrong_logprobs(*arguments: Any) -> tuple[Tensor, bool]:
        logprobs, cached = reference_logprobs(*arguments)
        logprobs[0::2] -= 0.5
        return logprobs, cached

    monkeypatch.setattr(reference, "reference_logprobs", wrong_logprobs)
    wrong = make("dpo", "wrong")
    with pytest.raises(TrainingError, match=r"self-check failed: first margin: \+0\.05, but 0 ± \S+; first loss"):
        tiny.train(wrong)
    assert tiny.manifest(Path(wrong.run))["status"] == "failed"
    assert not (Path(wrong.run) / "model").exists()
    regardless = make("dpo", "regardless", {"training.self_checks": False})
    tiny.train(regardless)
    manifest = tiny.manifest(Path(regardless.run))
    told = "training.self_checks is false: this run did not check its templates, masks and losses."
    assert told in manifest["warnings"]
    assert manifest["overridden"] == [told]
