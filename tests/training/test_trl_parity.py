"""DPO losses and gradients are TRL 1.16's on the same tokens and weights, with TRL's own trainers doing the work.

Where the two differ in what they average, the test says so and compares what both define:

- TRL's "sft" term averages over all chosen tokens of a batch, ours over pairs of each pair's mean (so that a pair's
  weight does not depend on its length): equal for batches of one pair.
- TRL's DPOTrainer has no conservative loss; its "aot" is that loss after sorting the pairs' log-ratios by size,
  which for a batch of one pair is the conservative loss.
- SimPO is CPOTrainer's, in trl.experimental; its gamma is our simpo_margin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from prefine.data.tokens.trees import TokenTree
from prefine.models.loading.load import LoadedModel, load_model
from prefine.recipe.sections import LoraSection, ModelSection
from prefine.recipe.stage import StageRecipe
from prefine.records import Preference
from tests.training import tiny
from tests.training.stepping import learning_weights, record

Make = Callable[..., StageRecipe]
LORA = LoraSection(r=4, alpha=8)
BETA, SMOOTHING, GAMMA, NLL = 0.3, 0.2, 0.7, 0.5
PAIRS = 6


@pytest.fixture(scope="module")
def loaded(model: Path) -> LoadedModel:
    return learning_weights(load_model(ModelSection(name=str(model), dtype="float32", device="cpu"), LORA))


@pytest.fixture(scope="module")
def trees(loaded: LoadedModel) -> list[TokenTree]:
    rows = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in tiny.pairs(PAIRS)]
    records = [Preference.model_validate_json(tiny.json.dumps(row)) for row in rows]
    return [loaded.template.preference_tree(record, number) for number, record in enumerate(records)]


@pytest.fixture(scope="module")
def trainer(loaded: LoadedModel, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """TRL's, on a second T whose adapter has the same weights; its reference is the base, as ours is."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    config = DPOConfig(
        output_dir=str(tmp_path_factory.mktemp("trl")),
        beta=BETA,
        label_smoothing=SMOOTHING,
        max_length=None,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
    )
    made = DPOTrainer(
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        args=config,
        train_dataset=Dataset.from_list(tiny.pairs(2)),
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    theirs, ours = dict(made.model.named_parameters()), loaded.trainable()
    assert ours.keys() == {name for name, p in theirs.items() if p.requires_grad}
    with torch.no_grad():
        for name, parameter in ours.items():
            theirs[name].copy_(parameter)
    yield made


def collated(trainer: Any, trees: Sequence[TokenTree]) -> dict[str, torch.Tensor]:
    rows = [
        {"prompt_ids": list(t.prompt), "chosen_ids": list(t.answers[0]), "rejected_ids": list(t.answers[1])}
        for t in trees
    ]
    batch: dict[str, torch.Tensor] = trainer.data_collator(rows)
    return batch


def compare(ours: Any, loss: torch.Tensor, model: Any) -> None:
    """Our one step's loss and gradients against a loss of TRL's and what its backward pass gives."""
    model.zero_grad()
    loss.backward()
    torch.testing.assert_close(ours.losses[0], loss.item(), rtol=1e-5, atol=1e-6)
    theirs = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert theirs.keys() == ours.gradients[0].keys()
    largest = max(gradient.abs().max().item() for gradient in theirs.values())
    assert largest > 1e-3
    for name, gradient in ours.gradients[0].items():
        torch.testing.assert_close(gradient, theirs[name], rtol=0, atol=3e-6 * largest, msg=name)


def one_step(make: Make, loaded: LoadedModel, trees: list[TokenTree], folder: Path, changes: dict[str, Any]) -> Any:
    quiet = {
        "training.self_checks": False,
        "training.save_every_steps": None,
        "training.epochs": 1,
        "training.max_grad_norm": None,
        "training.batch_size": PAIRS,
        "dpo.beta": BETA,
    }
    return record(make("dpo", changes=quiet | changes), loaded, trees, folder)


WHOLE_BATCH = {
    "sigmoid": {"dpo.loss": "sigmoid"},
    "hinge": {"dpo.loss": "hinge"},
    "ipo": {"dpo.loss": "ipo"},
    "robust": {"dpo.loss": "robust", "dpo.label_smoothing": SMOOTHING},
    "sigmoid_norm": {"dpo.loss": "sigmoid", "dpo.length_normalized": True},
}


@pytest.mark.parametrize("name", WHOLE_BATCH)
def test_losses_that_both_define_for_a_batch(
    name: str, make: Make, loaded: LoadedModel, trees: list[TokenTree], trainer: Any, tmp_path: Path
) -> None:
    """Ours packed with prompts shared and in several microbatches, theirs padded."""
    ours = one_step(make, loaded, trees, tmp_path / "ours", WHOLE_BATCH[name])
    trainer.loss_types, trainer.loss_weights = [name], [1.0]
    trainer.model.train()
    compare(ours, trainer.compute_loss(trainer.model, collated(trainer, trees)), trainer.model)


ONE_PAIR = {
    "conservative": (
        {"dpo.loss": "conservative", "dpo.label_smoothing": SMOOTHING},
        {"loss_types": ["aot"], "loss_weights": [1.0]},
    ),
    "sigmoid and nll": (
        {"dpo.loss": "sigmoid", "dpo.nll_weight": NLL},
        {"loss_types": ["sigmoid", "sft"], "loss_weights": [1.0, NLL]},
    ),
}


@pytest.mark.parametrize("name", ONE_PAIR)
def test_losses_that_both_define_for_a_pair(
    name: str, make: Make, loaded: LoadedModel, trees: list[TokenTree], trainer: Any, tmp_path: Path
) -> None:
    """Our mean over a batch against the mean of TRL's batches of one."""
    changes, settings = ONE_PAIR[name]
    ours = one_step(make, loaded, trees, tmp_path / "ours", changes)
    trainer.loss_types, trainer.loss_weights = settings["loss_types"], settings["loss_weights"]
    trainer.model.train()
    losses = [trainer.compute_loss(trainer.model, collated(trainer, [tree])) for tree in trees]
    compare(ours, torch.stack(losses).mean(), trainer.model)


def test_simpo(make: Make, loaded: LoadedModel, trees: list[TokenTree], trainer: Any, tmp_path: Path) -> None:
    """CPOTrainer's own log-probabilities and loss, on the logits of the same model."""
    from trl.experimental.cpo import CPOTrainer

    ours = one_step(
        make, loaded, trees, tmp_path / "ours", {"dpo.loss": "simpo", "dpo.beta": 2.0, "dpo.simpo_margin": GAMMA}
    )
    batch = collated(trainer, trees)
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    model = trainer.accelerator.unwrap_model(trainer.model)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    chosen, rejected = CPOTrainer.get_batch_logps(logits, labels, average_log_prob=True).chunk(2)
    settings = SimpleNamespace(
        alpha=0.0, loss_type="simpo", simpo_gamma=GAMMA, beta=2.0, label_smoothing=0.0, accelerator=trainer.accelerator
    )
    compare(ours, CPOTrainer.cpo_loss(settings, chosen, rejected)[0].mean(), model)
