"""Losses and gradients of DPO, KTO and ORPO are TRL 1.16's on the same tokens and weights, by TRL's own trainers.

Where the two differ in what they average, the test says so and compares what both define:

- TRL's "sft" term averages over all chosen tokens of a batch, ours over pairs of each pair's mean (so that a pair's
  weight does not depend on its length): equal for batches of one pair.
- TRL's DPOTrainer has no conservative loss; its "aot" is that loss after sorting the pairs' log-ratios by size,
  which for a batch of one pair is the conservative loss.
- SimPO is CPOTrainer's, in trl.experimental; its gamma is our simpo_margin.
- ORPOTrainer's supervised loss counts the prompt as well, and averages over all tokens of a batch: the test takes its
  odds-ratio loss, and adds the cross-entropy of the chosen answer's tokens.
- KTOTrainer pairs each prompt with the answer before it in one device's batch, we in an optimiser step: equal where the
  step is one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from prefine.data.tokens.trees import TokenTree, collate
from prefine.models.loading.load import LoadedModel, load_model
from prefine.recipe.sections import LoraSection, ModelSection
from prefine.recipe.stage import StageRecipe
from prefine.records import Preference
from prefine.training.loop.schedule import rows_of_step
from tests.training import tiny
from tests.training.stepping import VotedTrees, learning_weights, record

Make = Callable[..., StageRecipe]
LORA = LoraSection(r=4, alpha=8)
BETA, SMOOTHING, GAMMA, NLL = 0.3, 0.2, 0.7, 0.5
PAIRS = 6
QUIET = {
    "training.self_checks": False,
    "training.save_every_steps": None,
    "training.epochs": 1,
    "training.max_grad_norm": None,
}
OF_TRL: dict[str, Any] = {
    "max_length": None,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
}


@pytest.fixture(scope="module")
def loaded(model: Path) -> LoadedModel:
    return learning_weights(load_model(ModelSection(name=str(model), dtype="float32", device="cpu"), LORA))


@pytest.fixture(scope="module")
def trees(loaded: LoadedModel) -> list[TokenTree]:
    rows = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in tiny.pairs(PAIRS)]
    records = [Preference.model_validate_json(tiny.json.dumps(row)) for row in rows]
    return [loaded.template.preference_tree(record, number) for number, record in enumerate(records)]


def same_adapter(kind: Any, config: Any, rows: list[dict[str, Any]], loaded: LoadedModel, model: Path) -> Any:
    """A trainer of TRL on a second T whose adapter has the same weights; its reference is the base, as ours is."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer

    made = kind(
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    theirs, ours = dict(made.model.named_parameters()), loaded.trainable()
    assert ours.keys() == {name for name, p in theirs.items() if p.requires_grad}
    with torch.no_grad():
        for name, parameter in ours.items():
            theirs[name].copy_(parameter)
    return made


@pytest.fixture(scope="module")
def trainer(loaded: LoadedModel, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from trl import DPOConfig, DPOTrainer

    folder = str(tmp_path_factory.mktemp("trl"))
    config = DPOConfig(output_dir=folder, beta=BETA, label_smoothing=SMOOTHING, **OF_TRL)
    return same_adapter(DPOTrainer, config, tiny.pairs(2), loaded, model)


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
    quiet = {**QUIET, "training.batch_size": PAIRS, "dpo.beta": BETA}
    return record(make("dpo", changes=quiet | changes), loaded, trees, folder)


WHOLE_BATCH: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "sigmoid": ({"dpo.loss": "sigmoid"}, {"sigmoid": 1.0}),
    "hinge": ({"dpo.loss": "hinge"}, {"hinge": 1.0}),
    "ipo": ({"dpo.loss": "ipo"}, {"ipo": 1.0}),
    "robust": ({"dpo.loss": "robust", "dpo.label_smoothing": SMOOTHING}, {"robust": 1.0}),
    "sigmoid_norm": ({"dpo.loss": "sigmoid", "dpo.length_normalized": True}, {"sigmoid_norm": 1.0}),
    "bco_pair": ({"dpo.loss": "bco_pair"}, {"bco_pair": 1.0}),
    "several": (
        {"dpo.loss": {"sigmoid": 0.8, "bco_pair": 0.2, "ipo": 0.1, "hinge": 2.0}},
        {"sigmoid": 0.8, "bco_pair": 0.2, "ipo": 0.1, "hinge": 2.0},
    ),
    "several smoothed": (
        {"dpo.loss": {"robust": 0.5, "bco_pair": 1.0}, "dpo.label_smoothing": SMOOTHING},
        {"robust": 0.5, "bco_pair": 1.0},
    ),
}


@pytest.mark.parametrize("name", WHOLE_BATCH)
def test_losses_that_both_define_for_a_batch(
    name: str, make: Make, loaded: LoadedModel, trees: list[TokenTree], trainer: Any, tmp_path: Path
) -> None:
    """Ours packed with prompts shared and in several microbatches, theirs padded."""
    changes, losses = WHOLE_BATCH[name]
    ours = one_step(make, loaded, trees, tmp_path / "ours", changes)
    trainer.loss_types, trainer.loss_weights = list(losses), list(losses.values())
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
    "mixed preference optimisation": (
        {"dpo.loss": {"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0}},
        {"loss_types": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
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


def test_orpo(make: Make, loaded: LoadedModel, trees: list[TokenTree], trainer: Any, tmp_path: Path) -> None:
    """ORPOTrainer's own log-probabilities and odds-ratio loss, on the logits of the same model."""
    from trl.experimental.orpo import ORPOTrainer

    made = make("orpo", changes={**QUIET, "training.batch_size": PAIRS, "orpo.beta": BETA})
    ours = record(made, loaded, trees, tmp_path / "ours")
    batch = collated(trainer, trees)
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    model = trainer.accelerator.unwrap_model(trainer.model)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    chosen, rejected = ORPOTrainer.get_batch_logps(logits, labels, average_log_prob=True).chunk(2)
    settings = SimpleNamespace(beta=BETA, accelerator=trainer.accelerator)
    odds = ORPOTrainer.odds_ratio_loss(settings, chosen, rejected)[0]
    supervised = [
        torch.nn.functional.cross_entropy(row[:-1], wanted[1:], ignore_index=-100)
        for row, wanted in zip(logits[:PAIRS], labels[:PAIRS], strict=True)
    ]
    compare(ours, torch.stack(supervised).mean() - odds.mean(), model)


# --- Votes ------------------------------------------------------------------------------------------------------------

LABELS = [True, False, False, True, False, True]


@pytest.fixture(scope="module")
def voted(trees: list[TokenTree]) -> VotedTrees:
    """A vote on one answer of each pair."""
    answers = [tree.answers[0 if up else 1] for tree, up in zip(trees, LABELS, strict=True)]
    rows = [TokenTree(tree.prompt, (answer,), (None,), tree.row) for tree, answer in zip(trees, answers, strict=True)]
    return VotedTrees(rows, LABELS)


@pytest.fixture(scope="module")
def kto_trainer(loaded: LoadedModel, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from trl import KTOConfig, KTOTrainer

    folder = str(tmp_path_factory.mktemp("kto"))
    config = KTOConfig(output_dir=folder, beta=BETA, per_device_train_batch_size=PAIRS, **OF_TRL)
    return same_adapter(KTOTrainer, config, tiny.votes(PAIRS), loaded, model)


@contextmanager
def moved(
    loaded: LoadedModel, theirs: dict[str, torch.nn.Parameter], trees: Sequence[TokenTree], length: float
) -> Iterator[None]:
    """Inside, both adapters are moved so far along the gradient of the answers' log-probabilities."""
    ours = loaded.trainable()
    before = {name: parameter.detach().clone() for name, parameter in ours.items()}
    loaded.packed(collate(trees)).sum().backward()
    gradients = {name: p.grad for name, p in ours.items() if p.grad is not None}
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()

    def put(values: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, value in values.items():
                ours[name].copy_(value)
                theirs[name].copy_(value)
                ours[name].grad = None

    put({name: before[name] + gradient * length / norm for name, gradient in gradients.items()})
    try:
        yield
    finally:
        put(before)


# How far the adapter is moved, changes, and whether the mean log-ratio of mismatched answers is then above 0.
OF_VOTES: dict[str, tuple[float, dict[str, Any], bool]] = {
    "likelier answers": (1.0, {"kto.desirable_weight": 1.5, "kto.undesirable_weight": 0.7}, True),
    "less likely answers": (0.0, {}, False),
    "no baseline": (1.0, {"kto.loss": "apo_zero_unpaired", "kto.undesirable_weight": 2.0}, False),
}


@pytest.mark.parametrize("name", OF_VOTES)
def test_votes(name: str, make: Make, loaded: LoadedModel, voted: VotedTrees, kto_trainer: Any, tmp_path: Path) -> None:
    """One step, ours in several microbatches."""
    length, changes, above = OF_VOTES[name]
    made = make("kto", changes={**QUIET, "training.batch_size": PAIRS, "kto.beta": BETA, **changes})
    order = rows_of_step(0, PAIRS, made.training)
    answers = [list(voted[row].answers[0]) for row in order]
    rows = [
        {
            "prompt_ids": list(voted[row].prompt),
            "completion_ids": answer,
            "KL_completion_ids": before,
            "label": LABELS[row],
        }
        for row, answer, before in zip(order, answers, [answers[-1], *answers[:-1]], strict=True)
    ]
    kto_trainer.loss_type = changes.get("kto.loss", "kto")
    kto_trainer.calculate_KL = kto_trainer.loss_type == "kto"
    kto_trainer.desirable_weight = changes.get("kto.desirable_weight", 1.0)
    kto_trainer.undesirable_weight = changes.get("kto.undesirable_weight", 1.0)
    kto_trainer.model.train()
    theirs = {name: p for name, p in kto_trainer.model.named_parameters() if p.requires_grad}
    with moved(loaded, theirs, voted, length):
        ours = record(made, loaded, voted, tmp_path / "ours")
        loss = kto_trainer.compute_loss(kto_trainer.model, kto_trainer.data_collator(rows))
        compare(ours, loss, kto_trainer.model)
    assert (kto_trainer._metrics["train"]["kl"][-1] > 0.01) is above
