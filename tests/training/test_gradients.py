"""A step's loss and gradients depend on its rows and on nothing else: not on how they are split or what came before.

Pitfall 5: normalised by the whole step's tokens (SFT) or pairs (DPO), the ragged last step of an epoch included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from prefine.data.tokens.trees import TokenTree
from prefine.models.loading.load import LoadedModel, load_model
from prefine.recipe.sections import LoraSection, ModelSection
from prefine.recipe.stage import StageRecipe
from prefine.records import Demonstration, Preference
from prefine.training.loop.schedule import rows_of_step
from tests.training import tiny
from tests.training.stepping import Recorded, VotedTrees, learning_weights, record

Make = Callable[..., StageRecipe]

ONE_MICROBATCH, EACH_ALONE, RAGGED = 100_000, 16, 230
QUIET = {
    "training.self_checks": False,
    "training.save_every_steps": None,
    "training.max_grad_norm": None,
    "training.epochs": 1,
    "training.schedule": "constant",
    "training.warmup_fraction": 0.0,
}
ROWS = 21


@pytest.fixture(scope="module")
def loaded(model: Path) -> LoadedModel:
    section = ModelSection(name=str(model), dtype="float32", device="cpu")
    return learning_weights(load_model(section, LoraSection(r=4, alpha=8)))


@pytest.fixture(scope="module")
def trees(loaded: LoadedModel) -> dict[str, list[TokenTree]]:
    """Per stage; the demonstrations have two answers each, with a user turn between that does not count."""
    rows = tiny.pairs(ROWS)

    def said(role: str, content: str) -> dict[str, str]:
        return {"role": role, "content": content}

    chats = [
        [
            said("user", r["prompt"]),
            said("assistant", r["chosen"]),
            said("user", "and?"),
            said("assistant", r["rejected"]),
        ]
        for r in rows
    ]
    pairs = [{**row, "prompt": [said("user", row["prompt"])]} for row in rows]
    template = loaded.template
    records = [Preference.model_validate_json(tiny.json.dumps(pair)) for pair in pairs]
    labels = [vote["label"] for vote in tiny.votes(ROWS)]
    pair_trees = [template.preference_tree(pair, i) for i, pair in enumerate(records)]
    return {
        "sft": [
            template.demonstration_tree(Demonstration.model_validate_json(tiny.json.dumps({"messages": chat})), i)
            for i, chat in enumerate(chats)
        ],
        "dpo": pair_trees,
        "orpo": pair_trees,
        "kto": VotedTrees(
            [
                template.answers_tree(pair.prompt, [pair.chosen if up else pair.rejected], row=i)
                for i, (pair, up) in enumerate(zip(records, labels, strict=True))
            ],
            labels,
        ),
    }


def same(one: Recorded, other: Recorded) -> None:
    """Losses and gradients to 1e-6, of each step."""
    assert len(one.gradients) == len(other.gradients)
    torch.testing.assert_close(one.losses, other.losses, rtol=1e-6, atol=1e-6)
    for mine, theirs in zip(one.gradients, other.gradients, strict=True):
        assert mine.keys() == theirs.keys()
        largest = max(gradient.abs().max().item() for gradient in mine.values())
        assert largest > 1e-3  # there is something to compare
        for name, gradient in mine.items():
            torch.testing.assert_close(gradient, theirs[name], rtol=0, atol=1e-6 * largest, msg=name)


CASES: list[tuple[str, dict[str, Any]]] = [
    ("sft", {}),
    ("dpo", {}),
    ("dpo", {"dpo.loss": "ipo", "dpo.nll_weight": 0.5}),
    ("dpo", {"dpo.loss": "simpo", "dpo.beta": 2.0}),
    ("dpo", {"dpo.loss": {"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0}}),
    ("orpo", {"orpo.beta": 0.5}),
]


# A vote's KL baseline depends on the order of its step, so such a step is not that of a run without the others.
OF_STEPS: list[tuple[str, dict[str, Any]]] = [
    ("kto", {"kto.desirable_weight": 1.5}),
    ("kto", {"kto.loss": "apo_zero_unpaired"}),
]


@pytest.mark.parametrize(("stage", "changes"), [*CASES, *OF_STEPS])
def test_the_split_into_microbatches_changes_nothing(
    stage: str,
    changes: dict[str, Any],
    make: Make,
    loaded: LoadedModel,
    trees: dict[str, list[TokenTree]],
    tmp_path: Path,
) -> None:
    """21 rows in steps of 7: each step in one microbatch = in as many as rows = in uneven ones."""
    results = []
    for budget in (ONE_MICROBATCH, EACH_ALONE, RAGGED):
        settings = {**QUIET, **changes, "training.batch_size": 8, "training.max_tokens_per_microbatch": budget}
        results.append(record(make(stage, changes=settings), loaded, trees[stage], tmp_path / f"{budget}"))
    assert len(results[0].gradients) == 3
    same(results[0], results[1])
    same(results[0], results[2])


@pytest.mark.parametrize(("stage", "changes"), CASES)
def test_a_step_of_fewer_rows_is_a_step_of_its_rows_alone(
    stage: str,
    changes: dict[str, Any],
    make: Make,
    loaded: LoadedModel,
    trees: dict[str, list[TokenTree]],
    tmp_path: Path,
) -> None:
    """Of 21 rows in steps of at most 11 the first has 10: they weigh what they weigh in a run that has no others."""
    made = make(stage, changes={**QUIET, **changes, "training.batch_size": 11})
    whole = record(made, loaded, trees[stage], tmp_path / "whole")
    first = [trees[stage][row] for row in rows_of_step(0, ROWS, made.training)]
    assert (len(first), len(whole.losses)) == (10, 2)
    alone = record(made, loaded, renumbered(first), tmp_path / "alone")
    same(Recorded(whole.losses[:1], whole.gradients[:1]), alone)


def renumbered(trees: Sequence[TokenTree]) -> list[TokenTree]:
    return [TokenTree(tree.prompt, tree.answers, tree.supervised, row) for row, tree in enumerate(trees)]


@pytest.mark.parametrize("stage", ["sft", "dpo", "orpo"])
def test_a_big_step_is_the_weighted_mean_of_small_ones(
    stage: str, make: Make, loaded: LoadedModel, trees: dict[str, list[TokenTree]], tmp_path: Path
) -> None:
    """Weighted by supervised tokens for SFT, by pairs for DPO: the arithmetic the loop leaves to its normalisation."""
    big = record(make(stage, changes={**QUIET, "training.batch_size": ROWS}), loaded, trees[stage], tmp_path / "big")
    made = make(stage, changes={**QUIET, "training.batch_size": 1})
    small = record(made, loaded, trees[stage], tmp_path / "small")
    order = [rows_of_step(step, ROWS, made.training)[0] for step in range(ROWS)]
    weigh = [trees[stage][row].supervised_tokens if stage == "sft" else 1 for row in order]
    mean = {
        name: sum(w * g[name] for w, g in zip(weigh, small.gradients, strict=True)) / sum(weigh)
        for name in big.gradients[0]
    }
    loss = sum(w * each for w, each in zip(weigh, small.losses, strict=True)) / sum(weigh)
    same(big, Recorded([loss], [mean]))


def test_sft_is_transformers_own_loss_on_the_same_labels(
    make: Make, loaded: LoadedModel, trees: dict[str, list[TokenTree]], model: Path, tmp_path: Path
) -> None:
    """Padded rows with labels of -100 outside the supervised turns; loss and adapter gradients."""
    ours = record(make("sft", changes={**QUIET, "training.batch_size": ROWS}), loaded, trees["sft"], tmp_path / "ours")
    section = ModelSection(name=str(model), dtype="float32", device="cpu", attn_implementation="sdpa")
    theirs = learning_weights(load_model(section, LoraSection(r=4, alpha=8)))
    rows = [[*tree.prompt, *tree.answers[0]] for tree in trees["sft"]]
    labels = [
        [-100] * len(tree.prompt) + [t if counts else -100 for t, counts in zip(tree.answers[0], mask, strict=True)]
        for tree in trees["sft"]
        if (mask := tree.supervised[0]) is not None
    ]
    assert len(labels) == ROWS

    def pad(lists: list[list[int]], value: int) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence([torch.tensor(each) for each in lists], True, value)

    attention = pad([[1] * len(row) for row in rows], 0)
    out: Any = theirs.packed.model(input_ids=pad(rows, 0), attention_mask=attention, labels=pad(labels, -100))
    out.loss.backward()
    gradients = {name: p.grad for name, p in theirs.trainable().items() if p.grad is not None}
    same(ours, Recorded([out.loss.item()], [gradients]))
