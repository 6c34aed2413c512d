"""Reward losses and gradients are TRL 1.16's on the same tokens and weights, with TRL's own trainer doing the work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from prefine.data.tokens.trees import TokenTree, collate
from prefine.models.loading.load import LoadedModel, load_model
from prefine.recipe.reward import RewardSection
from prefine.recipe.sections import LoraSection, ModelSection
from prefine.records import Preference
from prefine.training.stages.reward import Labels, row_losses
from tests.training import tiny
from tests.training.stepping import learning_weights

PAIRS = 6
MARGINS = [0.0, 0.5, 1.5, 0.0, 2.0, 0.25]


@pytest.fixture(scope="module")
def loaded(model: Path) -> LoadedModel:
    torch.manual_seed(0)
    section = ModelSection(name=str(model), dtype="float32", device="cpu")
    return learning_weights(load_model(section, LoraSection(r=4, alpha=8), heads=1))


@pytest.fixture(scope="module")
def trees(loaded: LoadedModel) -> list[TokenTree]:
    rows = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in tiny.pairs(PAIRS)]
    records = [Preference.model_validate_json(tiny.json.dumps(row)) for row in rows]
    return [loaded.template.preference_tree(record, number) for number, record in enumerate(records)]


@pytest.fixture(scope="module")
def trainer(loaded: LoadedModel, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """TRL's, on a second T whose adapter and head have the same weights; it pads with a token that ends no answer."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    config = RewardConfig(
        output_dir=str(tmp_path_factory.mktemp("trl")),
        max_length=None,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
    )
    made = RewardTrainer(
        AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype=torch.float32),
        args=config,
        train_dataset=Dataset.from_list(tiny.pairs(2)),
        processing_class=loaded.tokenizer,
        peft_config=LoraConfig(
            r=4, lora_alpha=8, target_modules="all-linear", task_type="SEQ_CLS", modules_to_save=["score"]
        ),
    )
    theirs, ours = dict(made.model.named_parameters()), loaded.trainable()
    assert ours.keys() == {name for name, p in theirs.items() if p.requires_grad}
    with torch.no_grad():
        for name, parameter in ours.items():
            theirs[name].copy_(parameter)
    yield made


def collated(trainer: Any, trees: Sequence[TokenTree], margins: Sequence[float] | None) -> dict[str, torch.Tensor]:
    rows: list[dict[str, Any]] = [
        {"chosen_ids": [*t.prompt, *t.answers[0]], "rejected_ids": [*t.prompt, *t.answers[1]]} for t in trees
    ]
    if margins is not None:
        rows = [{**row, "margin": margin} for row, margin in zip(rows, margins, strict=True)]
    batch: dict[str, torch.Tensor] = trainer.data_collator(rows)
    return batch


@pytest.mark.parametrize("centring", [0.0, 0.3])
@pytest.mark.parametrize("margins", [None, MARGINS], ids=["no margins", "margins"])
def test_bradley_terry_with_margins_and_centring(
    margins: list[float] | None, centring: float, loaded: LoadedModel, trees: list[TokenTree], trainer: Any
) -> None:
    """Ours packed with prompts shared, theirs padded."""
    section = RewardSection(centring_weight=centring)
    records = [{"tie": False, "margin": margin} for margin in margins or [None] * PAIRS]
    loaded.packed.train()
    raw = loaded.packed(collate(trees)).view(PAIRS, 2, 1)
    loss = row_losses(raw, Labels.of(records, section), section).mean()
    trainable = loaded.trainable()
    ours = dict(zip(trainable, torch.autograd.grad(loss, list(trainable.values())), strict=True))

    trainer.args.center_rewards_coefficient = centring or None
    trainer.model.train()
    trainer.model.zero_grad()
    their_loss = trainer.compute_loss(trainer.model, collated(trainer, trees, margins))
    their_loss.backward()

    torch.testing.assert_close(loss.detach(), their_loss.detach(), rtol=1e-5, atol=1e-6)
    theirs = {name: p.grad for name, p in trainer.model.named_parameters() if p.requires_grad}
    largest = max(gradient.abs().max().item() for gradient in theirs.values())
    assert theirs.keys() == ours.keys()
    assert largest > 1e-3
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=0, atol=3e-6 * largest, msg=name)
