"""Answers written for the report: the same alone as in a batch, and without a trace in the training's randomness."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from prefine.data.tokens.trees import TokenTree, collate
from prefine.generation.answers import write_answers
from prefine.models.loading.load import LoadedModel, load_model
from prefine.recipe.sections import LoraSection, ModelSection
from prefine.recipe.stage import StageRecipe
from prefine.records import Message
from tests.training import tiny
from tests.training.stepping import learning_weights

Make = Callable[..., StageRecipe]


@pytest.fixture(scope="module")
def loaded(model: Path) -> LoadedModel:
    section = ModelSection(name=str(model), dtype="float32", device="cpu")
    return learning_weights(load_model(section, LoraSection(r=4, alpha=8, dropout=0.3)))


@pytest.fixture(scope="module")
def prompts(loaded: LoadedModel) -> list[list[int]]:
    """20 prompts of 20 lengths: more than one batch, and the longest first."""
    asked = [f"question {'?' * length}" for length in range(60, 0, -3)]
    return [loaded.template.prompt_ids((Message(role="user", content=text),)) for text in asked]


def test_a_batch_writes_what_each_prompt_gets_alone(loaded: LoadedModel, prompts: list[list[int]]) -> None:
    """Pitfall 26, greedy in fp32: padding moves no position and is never attended to."""
    together = write_answers(loaded.packed, loaded.template, prompts, max_new_tokens=12, temperature=0)
    alone = [write_answers(loaded.packed, loaded.template, [p], max_new_tokens=12, temperature=0)[0] for p in prompts]
    assert together == alone
    assert len({answer.text for answer in together}) > 1


def test_greedy_is_the_likeliest_under_the_packed_forward(loaded: LoadedModel, prompts: list[list[int]]) -> None:
    """Generation attends another way than training; both must be the same model."""
    ids, vocabulary = list(prompts[0]), range(len(loaded.tokenizer))
    model = loaded.packed.eval()
    for _ in range(4):
        every_token = TokenTree(ids, tuple([token] for token in vocabulary), (None,) * len(vocabulary))
        with torch.no_grad():
            ids.append(int(model(collate([every_token])).argmax()))
    (answer,) = write_answers(model, loaded.template, prompts[:1], max_new_tokens=4, temperature=0)
    assert answer.text == loaded.tokenizer.decode(ids[len(prompts[0]) :], skip_special_tokens=True).strip()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_global_random_state_and_no_mode_is_changed(
    temperature: float, loaded: LoadedModel, prompts: list[list[int]]
) -> None:
    for training in (True, False):
        loaded.packed.train(training)
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[union-attr]
        write_answers(loaded.packed, loaded.template, prompts[:3], max_new_tokens=3, temperature=temperature)
        after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[union-attr]
        assert torch.equal(before[0], after[0])
        assert before[1:] == after[1:]
        assert loaded.packed.training == training


def test_sampling_has_its_own_seed(loaded: LoadedModel, prompts: list[list[int]]) -> None:
    def sampled(seed: int) -> list[str]:
        answers = write_answers(loaded.packed, loaded.template, prompts[:4], 8, temperature=1.0, seed=seed)
        return [answer.text for answer in answers]

    torch.manual_seed(1)
    first = sampled(0)
    torch.manual_seed(2)
    assert sampled(0) == first
    assert sampled(1) != first


def test_lengths_and_progress_are_told(loaded: LoadedModel, prompts: list[list[int]]) -> None:
    done: list[int] = []
    answers = write_answers(loaded.packed, loaded.template, prompts, 5, temperature=0, progress=done.append)
    assert done[-1] == 20 and done == sorted(set(done))
    assert all((answer.tokens == 5 and not answer.ended) or answer.tokens <= 5 for answer in answers)
    assert write_answers(loaded.packed, loaded.template, [], 5, temperature=0) == []


def test_a_prompt_as_long_as_the_context_is_cut_from_the_left(loaded: LoadedModel) -> None:
    """T has 512 positions; a model with learned positions fails beyond its last."""
    limit = loaded.packed.causal.config.max_position_embeddings
    long = [5 + i % 200 for i in range(limit + 30)]
    whole, cut = write_answers(loaded.packed, loaded.template, [long, long[-(limit - 6) :]], 6, temperature=0)
    assert whole == cut
    (most,) = write_answers(loaded.packed, loaded.template, [long], 10 * limit, temperature=0)
    assert most.tokens <= limit - 1


def test_a_run_writes_each_sample_before_and_after(make: Make, tmp_path: Path) -> None:
    asked = tiny.write_rows(tmp_path / "asked.jsonl", [{"prompt": f"asked {i}", "id": f"p{i}"} for i in range(7)])
    for prompts, ids in ((str(asked), ["p0", "p3", "p6"]), (None, None)):
        made = make("dpo", f"{prompts is None}", {"report.prompts": prompts, "report.samples": 3})
        tiny.train(made)
        rows = [json.loads(line) for line in (Path(made.run) / "samples.jsonl").read_text().splitlines()]
        assert len(rows) == 3
        assert all(
            {"before", "after", "before_tokens", "after_tokens", "before_ended", "prompt"} <= row.keys() for row in rows
        )
        assert ids is None or [row["id"] for row in rows] == ids
        assert all(("reference" in row) == (prompts is None) for row in rows)
        assert [row["before"] for row in rows] != [row["after"] for row in rows]
        told = json.loads((Path(made.run) / "evaluation.json").read_text())
        assert told["generation"]["after"]["mean_tokens"] == sum(row["after_tokens"] for row in rows) / 3


def test_samples_change_nothing_in_training(make: Make) -> None:
    runs = []
    for samples in (0, 3):
        made = make("sft", f"{samples}", {"report.samples": samples, "report.temperature": 1.0})
        tiny.train(made)
        runs.append(tiny.weights(Path(made.run)))
    assert all(torch.equal(weight, runs[1][name]) for name, weight in runs[0].items())
