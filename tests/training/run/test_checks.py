"""Every self-check fails when it should. Stores are written by hand: prefine's own template makes none that fail."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from prefine.data.tokens.store import StoreWriter, TokenStore
from prefine.data.tokens.template import ChatTemplate
from prefine.data.tokens.trees import TokenTree
from prefine.errors import CheckpointError, TrainingError
from prefine.models.loading.load import LoadedModel
from prefine.models.loading.load import save_model as real_save_model
from prefine.recipe.stage import StageRecipe
from prefine.training.run import run_stage as session
from prefine.training.run.checks import (
    SelfCheck,
    check_first_loss,
    check_first_ratio,
    check_leaks,
    check_tokens,
    require,
)
from tests.training import tiny

Make = Callable[..., StageRecipe]


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    return ChatTemplate(tiny.make_tokenizer())


def store(folder: Path, trees: Sequence[TokenTree], prompts: Sequence[str] = ()) -> TokenStore:
    path = folder / f"{len(list(folder.iterdir()))}.arrow"
    with StoreWriter(path) as writer:
        for number, tree in enumerate(trees):
            said = prompts[number] if prompts else f"question {number}"
            writer.add(tree, json.dumps({"prompt": [{"role": "user", "content": said}]}))
    return TokenStore(path)


def outcome(template: ChatTemplate, rows: TokenStore) -> dict[str, tuple[bool, str]]:
    return {check.name: (check.passed, check.value) for check in check_tokens(template, rows)}


def test_good_rows_pass(template: ChatTemplate, tmp_path: Path) -> None:
    stop = template.tokenizer.eos_token_id
    good = TokenTree([5, 6], ([7, stop], [8, 9, stop]), (None, [False, True, True]))
    assert all(passed for passed, _ in outcome(template, store(tmp_path, [good])).values())
    assert all(passed for passed, _ in outcome(template, store(tmp_path, [])).values())


@pytest.mark.parametrize(
    ("answers", "masks"),
    [
        (([7, 8],), (None,)),  # no end of turn at all
        (([7, "stop", 8],), (None,)),  # one, but not at the end
        (([7, "stop"],), ([True, False],)),  # there, but not learned: pad == eos masked out
        (([7, "stop"], [7, 8]), (None, None)),  # in one answer of two
    ],
)
def test_an_unsupervised_end_of_turn_fails(answers: Any, masks: Any, template: ChatTemplate, tmp_path: Path) -> None:
    ids = tuple([template.tokenizer.eos_token_id if i == "stop" else i for i in answer] for answer in answers)
    found = outcome(template, store(tmp_path, [TokenTree([5], ids, masks)]))
    assert found["end of turn"] == (False, "1 of 1 rows without")


def test_rows_with_nothing_to_learn_fail(template: ChatTemplate, tmp_path: Path) -> None:
    stop = template.tokenizer.eos_token_id
    rows = [TokenTree([5], ([7, stop],), ([False, False],)), TokenTree([5], ([7, stop],), (None,))]
    assert outcome(template, store(tmp_path, rows))["something to learn"] == (False, "1 of 2 rows without")


def test_a_doubled_bos_fails(template: ChatTemplate, tmp_path: Path) -> None:
    bos, stop = template.tokenizer.bos_token_id, template.tokenizer.eos_token_id
    rows = [TokenTree([bos, bos, 5], ([stop],), (None,)), TokenTree([bos, 5, bos], ([stop],), (None,))]
    assert outcome(template, store(tmp_path, rows))["beginning of sequence"] == (False, "1 of 2 rows with two")


def test_a_shared_prompt_fails_however_it_is_spelled(tmp_path: Path) -> None:
    trees = [TokenTree([5], ([6],), (None,))] * 2
    train = store(tmp_path, trees, ["What is  DPO?", "another"])
    assert not check_leaks(train, store(tmp_path, trees[:1], ["what is dpo?"])).passed
    assert check_leaks(train, store(tmp_path, trees[:1], ["what is sft?"])).passed


# Sums of 300 nats, in fp32: 4 * 300 * 1.19e-7 = 1.4e-4.
@pytest.mark.parametrize(("loss", "margin"), [(0.69335, 0.0), (0.69315, 2e-4), (0.69315, -2e-4), (float("nan"),) * 2])
def test_the_first_loss_has_its_tolerance(loss: float, margin: float) -> None:
    checks = check_first_loss(loss, margin, repeated=0.0, largest=300.0)
    assert not all(check.passed for check in checks)
    assert "0 ± 0.00014" in checks[0].rule


def test_the_first_loss_may_be_rounded() -> None:
    """By as much as sums of that size are in fp32, and by four times what two computations of a batch differ in."""
    assert all(check.passed for check in check_first_loss(0.69320, -1e-4, repeated=0.0, largest=300.0))
    assert all(check.passed for check in check_first_loss(0.69320, 0.003, repeated=1e-3, largest=300.0))
    assert not all(check.passed for check in check_first_loss(0.69320, 0.005, repeated=1e-3, largest=300.0))


def test_the_first_ratio_is_1_where_a_computation_can_be_repeated() -> None:
    """3.7e-5 was the difference of two functions in float32: a fault, which no computation's own noise explains."""
    assert check_first_ratio(0.0, 0.0).passed
    assert not check_first_ratio(3.7e-5, 0.0).passed
    assert check_first_ratio(3.7e-5, 1e-5).passed
    assert not check_first_ratio(float("nan"), 0.0).passed
    assert not check_first_ratio(float("inf"), 1e-5).passed


def test_all_failures_are_told_at_once() -> None:
    checks = [
        SelfCheck("a", "1", "must be 2", False),
        SelfCheck("b", "0", "is 0", True),
        SelfCheck("c", "x", "y", False),
    ]
    with pytest.raises(TrainingError, match="self-check failed: a: 1, but must be 2; c: x, but y"):
        require(checks)
    assert [check["name"] for check in require(checks[1:2])] == ["b"]


def test_a_model_that_reads_back_otherwise_is_refused(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(loaded: LoadedModel, folder: Path, *beside: Any) -> None:
        with torch.no_grad():
            parameter = next(iter(loaded.trainable().values()))
            parameter += 1
            real_save_model(loaded, folder, *beside)
            parameter -= 2

    made = make("sft", changes={"training.max_steps": 1})
    monkeypatch.setattr(session, "save_model", damaged)
    with pytest.raises(CheckpointError, match="the file differs from what was saved"):
        tiny.train(made)
    assert tiny.manifest(Path(made.run))["status"] == "failed"


@pytest.mark.parametrize("lora", [{"r": 4}, None])
def test_a_sound_run_shows_its_checks_and_an_example(lora: Any, make: Make) -> None:
    made = make("sft", changes={"lora": lora, "training.max_steps": 1})
    tiny.train(made)
    manifest = tiny.manifest(Path(made.run))
    assert {check["name"]: check["passed"] for check in manifest["self_checks"]} == dict.fromkeys(
        ["something to learn", "end of turn", "beginning of sequence", "held-out prompts", "saved model"], True
    )
    assert manifest["example"].count("⟦") == 1
    assert manifest["example"].endswith("<|im_end|>⟧")


def test_the_saved_folder_says_how_it_was_made(make: Make) -> None:
    """Its figures are those of the run's own files, and no path of this machine is in it."""
    made = make("dpo", changes={"training.max_steps": 2})
    tiny.train(made)
    run = Path(made.run)
    text = (run / "model" / "README.md").read_text("utf-8")
    assert Path(made.model.name).is_absolute()
    assert made.model.name not in text
    rows = [row for row in tiny.metrics(run) if row["kind"] == "heldout"]
    assert f"| loss | {rows[0]['loss']:.4g} | {rows[-1]['loss']:.4g} |" in text
    assert f"- rows, train: {tiny.manifest(run)['data']['train']['rows']}" in text
    assert "- stage: dpo" in text
    assert "library_name: peft" in text
