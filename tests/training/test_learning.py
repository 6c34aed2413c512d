"""What training does to a model, seen from outside: it learns to stop, and warns when it learns the wrong way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prefine.generation.answers import write_answers
from prefine.models.loading.load import load_model
from prefine.recipe.sections import ModelSection
from prefine.recipe.stage import StageRecipe
from prefine.records import Message
from tests.training import tiny

Make = Callable[..., StageRecipe]

CALLS = [("one", "first"), ("two", "the second one"), ("three", "3"), ("four", "fourth and last")]
# A template that ends an assistant's turn with nothing: prefine adds the end of sequence (pitfall 1).
OMITS_END = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


@pytest.mark.parametrize("case", ["pad is the end of turn", "pad is another token", "the template omits the end"])
def test_an_overfitted_model_stops_by_itself(case: str, make: Make, tmp_path: Path) -> None:
    """Pitfall 1: the end of turn is learned, though padding is masked and though pad may be that very token."""
    tokenizer: dict[str, str] = {
        "pad is the end of turn": {},
        "pad is another token": {"pad": "<|pad|>"},
        "the template omits the end": {"template": OMITS_END},
    }[case]
    taught = tiny.save_model(tmp_path / "T", **tokenizer)
    chats = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in CALLS]
    made = make(
        "sft",
        changes={
            "model.name": str(taught),
            "lora": None,
            "data.train": str(tiny.write_rows(tmp_path / "chats.jsonl", chats)),
            "data.heldout_fraction": 0.0,
            "training.epochs": 120,
            "training.evaluate_every_steps": None,
            "training.save_every_steps": None,
        },
    )
    tiny.train(made)
    loaded = load_model(ModelSection(name=made.run, dtype="float32", device="cpu"), None, trainable=False)
    prompts = [loaded.template.prompt_ids((Message(role="user", content=question),)) for question, _ in CALLS]
    answers = write_answers(loaded.packed, loaded.template, prompts, max_new_tokens=40, temperature=0)
    assert [(answer.text, answer.ended) for answer in answers] == [(text, True) for _, text in CALLS]
    assert [answer.tokens for answer in answers] == [len(text) + 1 for _, text in CALLS]


def test_a_fall_of_the_chosen_answers_is_told_and_nll_holds_them_up(make: Make, tmp_path: Path) -> None:
    """Pitfall 17: answers that share all but one letter, so that what pushes one down pushes both."""
    ending = "is the answer to it, surely"
    rows = [{"prompt": f"question {i}", "chosen": f"a {ending} {i}", "rejected": f"b {ending} {i}"} for i in range(30)]
    changes: dict[str, Any] = {
        "data.train": str(tiny.write_rows(tmp_path / "pairs.jsonl", rows)),
        "training.save_every_steps": None,
        "report.samples": 0,
    }
    taught = make("sft", "sft", {**changes, "training.epochs": 8})
    tiny.train(taught)
    for nll_weight in (0.0, 1.0):
        settings = {"model.name": taught.run, "training.epochs": 5, "dpo.nll_weight": nll_weight}
        made = make("dpo", f"nll-{nll_weight}", changes | settings)
        tiny.train(made)
        held = [row for row in tiny.metrics(Path(made.run)) if row["kind"] == "heldout"]
        fall = held[0]["logp_chosen"] - held[-1]["logp_chosen"]
        assert held[-1]["accuracy"] == 1.0  # by the margin alone, both runs look well
        warnings = tiny.manifest(Path(made.run))["warnings"]
        if nll_weight:
            assert fall < 0
            assert warnings == []
        else:
            assert fall > 10
            assert len(warnings) == 1
            assert f"fell by {fall:.1f} nats" in warnings[0]
            assert "dpo.nll_weight" in warnings[0]


@pytest.mark.parametrize("loss", ["sigmoid", "conservative", "robust", "hinge", "ipo", "simpo"])
def test_every_preference_loss_learns_which_answer_is_preferred(loss: str, make: Make) -> None:
    smoothing = 0.1 if loss in ("conservative", "robust") else 0.0
    changes = {"dpo.loss": loss, "dpo.label_smoothing": smoothing, "training.epochs": 4, "report.samples": 0}
    made = make("dpo", changes={**changes, "training.save_every_steps": None})
    tiny.train(made)
    held = [row for row in tiny.metrics(Path(made.run)) if row["kind"] == "heldout"]
    assert held[-1]["accuracy"] == 1.0
    assert held[-1]["loss"] < held[0]["loss"]


def test_without_a_heldout_part_a_run_still_ends(make: Make) -> None:
    for stage in ("sft", "dpo"):
        made = make(stage, stage, {"data.heldout_fraction": 0.0, "training.max_steps": 2})
        tiny.train(made)
        assert (Path(made.run) / "report.html").exists()
        assert all(row["kind"] == "train" for row in tiny.metrics(Path(made.run)))


def test_gradient_checkpointing_computes_the_same(make: Make) -> None:
    runs = []
    for checkpointing in (False, True):
        changes = {"model.gradient_checkpointing": checkpointing, "lora.dropout": 0.0, "training.epochs": 1}
        made = make("dpo", f"{checkpointing}", changes)
        tiny.train(made)
        runs.append(tiny.weights(Path(made.run)))
    for name, weight in runs[0].items():
        torch.testing.assert_close(weight, runs[1][name], rtol=0, atol=1e-5)
