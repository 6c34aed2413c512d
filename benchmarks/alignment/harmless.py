"""Reward models and DPO on real human preferences (harmless-base), beside TRL 1.16: the same pairs, once each.

Only pairs whose texts fit in whole are used, so neither trainer cuts or filters any. The margin of each held-out pair
is the trainer's own figure: of the scores, or for DPO of the implicit rewards (Rafailov et al. 2023, arXiv 2305.18290,
section 4). Needs PREFINE_DATA.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.alignment.steps import apart, keep_versions, kept, require_settings, sha256_of
from benchmarks.work import LORA_RANK, pairs, source, write_pairs
from prefine.intervals import Share
from prefine.models.loading.embedded import embedded_folder
from prefine.records import Preference

MODEL = "embedded:smollm2-135m"
TRAIN, HELD_OUT, BATCH, EVALUATED_PAIRS = 240, 240, 8, 1
MAX_LENGTH_TOKENS = 128
LEARNING_RATES = {"reward": 2e-4, "dpo": 1e-4}


def run(folder: Path, seeds: Sequence[int], peer_seeds: Sequence[int], dtype: str) -> None:
    """Train both kinds with both trainers and each seed."""
    require_settings(
        folder,
        model=MODEL,
        dtype=dtype,
        data=sha256_of(Path(source())),
        sizes=[TRAIN, HELD_OUT, BATCH, MAX_LENGTH_TOKENS],
        learning_rates=LEARNING_RATES,
        trl=version("trl"),
    )
    keep_versions(folder, "transformers", "peft", "trl")
    for trainer, own_seeds in ((ours, seeds), (trl, peer_seeds)):
        for seed in own_seeds:
            for stage in LEARNING_RATES:
                path = folder / f"{stage}-{trainer.__name__}-{seed}.json"
                found = kept(
                    path, lambda trainer=trainer, stage=stage, seed=seed: _margins_of(trainer, stage, seed, dtype)
                )
                print(
                    f"{stage}, {trainer.__name__}, seed {seed}: held-out accuracy {accuracy(found['margins'])}",
                    flush=True,
                )


def accuracy(margins: Sequence[float]) -> str:
    """The share of pairs with a positive margin, with its 95 % interval."""
    share = Share(sum(each > 0 for each in margins) / len(margins), len(margins))
    assert share.interval is not None
    return f"{share.value:.3f} ({share.interval.low:.3f} to {share.interval.high:.3f})"


def _margins_of(trainer: Any, stage: str, seed: int, dtype: str) -> dict[str, Any]:
    found: dict[str, Any] = apart(trainer, stage, seed, dtype)
    assert len(found["margins"]) == HELD_OUT
    assert found["steps"] == TRAIN // BATCH
    assert all(map(math.isfinite, found["margins"]))
    return found


def split() -> tuple[list[Preference], list[Preference]]:
    """Pairs to train on and held-out pairs: the first ones of which both conversations fit; no two begin alike."""
    from prefine.models.loading.load import load_tokenizer
    from prefine.models.loading.location import locate_model
    from prefine.recipe.sections import ModelSection

    section = ModelSection(name=MODEL)
    tokenizer = load_tokenizer(locate_model(section.name), section).tokenizer

    def tokens(pair: Preference, answer: str) -> int:
        turns = [*(turn.model_dump() for turn in pair.prompt), {"role": "assistant", "content": answer}]
        return len(tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"])

    fitting = {
        pair.prompt[0].content: pair
        for pair in pairs(10 * (TRAIN + HELD_OUT))
        if max(tokens(pair, pair.chosen), tokens(pair, pair.rejected)) <= MAX_LENGTH_TOKENS
    }
    found = list(fitting.values())[: TRAIN + HELD_OUT]
    assert len(found) == TRAIN + HELD_OUT
    return found[:TRAIN], found[TRAIN:]


def ours(stage: str, seed: int, dtype: str) -> dict[str, Any]:
    """Margins of the held-out pairs and tokens read after one epoch with prefine."""
    import prefine

    train, heldout = split()
    with tempfile.TemporaryDirectory() as scratch:
        paths = {name: Path(scratch) / f"{name}.jsonl" for name in ("train", "heldout")}
        write_pairs(paths["train"], train)
        write_pairs(paths["heldout"], heldout)
        recipe: dict[str, Any] = {
            "run": f"{scratch}/run",
            "model": {"name": MODEL, "dtype": dtype},
            "lora": {"r": LORA_RANK, "alpha": 2.0 * LORA_RANK},
            "data": {**{name: str(path) for name, path in paths.items()}, "max_length_tokens": MAX_LENGTH_TOKENS},
            "training": {
                "epochs": 1,
                "batch_size": BATCH,
                "learning_rate": LEARNING_RATES[stage],
                "warmup_fraction": 0.0,
                "seed": seed,
                "evaluate_every_steps": None,
                "keep_best": False,  # as TRL: the last weights
            },
        }
        if stage == "dpo":
            run = prefine.dpo({**recipe, "report": {"samples": 0}})
            margins = [row["after_margin"] for row in run.evaluation["heldout"]["pairs"]]
        else:
            run = prefine.reward({**recipe, "reward": {"centring_weight": 0.0}})
            margins = _margins(run.model, heldout)
        steps = list(run.metrics("train"))
    return {"margins": margins, "tokens": sum(row["tokens"] for row in steps), "steps": len(steps)}


def _margins(model: Any, heldout: Sequence[Preference]) -> list[float]:
    """Scores of the preferred answers minus those of the others."""
    asked = [
        {"prompt": [turn.model_dump() for turn in pair.prompt], "response": answer}
        for pair in heldout
        for answer in (pair.chosen, pair.rejected)
    ]
    scores = [row["score"] for row in model.score(asked)]
    return [chosen - rejected for chosen, rejected in zip(scores[::2], scores[1::2], strict=True)]


def trl(stage: str, seed: int, dtype: str) -> dict[str, Any]:
    """The same with TRL."""
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, set_seed
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

    from benchmarks.peer_trl import rows

    set_seed(seed)
    where, scores = embedded_folder(MODEL), stage == "reward"
    auto: Any = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
    task: dict[str, Any] = (
        {"task_type": "SEQ_CLS", "modules_to_save": ["score"]} if scores else {"task_type": "CAUSAL_LM"}
    )
    margin = "margin" if scores else "rewards/margins"
    config_kind, kind = (RewardConfig, RewardTrainer) if scores else (DPOConfig, DPOTrainer)

    class Trainer(kind):  # type: ignore[misc, valid-type]
        """Keeps the margins of an evaluation: TRL logs their mean, of one pair a batch here."""

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            if not self.model.training:
                self.margins = [float(each) for each in self._metrics["eval"][margin]]
            super().log(logs, start_time)

    train, heldout = split()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            auto.from_pretrained(where, dtype=torch.float32, **({"num_labels": 1} if scores else {})),
            args=config_kind(
                output_dir=scratch,
                num_train_epochs=1,
                per_device_train_batch_size=BATCH // 2,
                per_device_eval_batch_size=EVALUATED_PAIRS,
                gradient_accumulation_steps=2,
                max_length=MAX_LENGTH_TOKENS,
                learning_rate=LEARNING_RATES[stage],
                lr_scheduler_type="cosine",
                seed=seed,
                bf16=dtype == "bfloat16",
                use_cpu=True,
                gradient_checkpointing=False,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
            ),
            train_dataset=rows(stage, train),
            eval_dataset=rows(stage, heldout),
            processing_class=AutoTokenizer.from_pretrained(where),
            peft_config=LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules="all-linear", **task),
        )
        trainer.train()
        trainer.evaluate()
    return {
        "margins": trainer.margins,
        "tokens": int(trainer._total_train_tokens),
        "steps": trainer.state.global_step,
    }
