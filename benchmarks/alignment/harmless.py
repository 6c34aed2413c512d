"""Reward models and DPO on real human preferences (harmless-base), beside TRL 1.16: the same pairs, once each.

Accuracy on held-out pairs is each trainer's own figure: for DPO that of the implicit reward (Rafailov et al. 2023,
arXiv 2305.18290, section 4). Needs PREFINE_DATA.
"""

from __future__ import annotations

import math
import multiprocessing
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.alignment.steps import kept, require_settings
from benchmarks.work import HH, LORA_RANK, MAX_LENGTH_TOKENS, pairs, source, write_pairs
from prefine.intervals import Share
from prefine.models.loading.embedded import embedded_folder
from prefine.records import Preference

MODEL = "embedded:smollm2-135m"
TRAIN, HELD_OUT, BATCH = 480, 320, 8
LEARNING_RATES = {"reward": 2e-4, "dpo": 1e-4}


def run(folder: Path, seeds: Sequence[int], dtype: str) -> None:
    """Train both kinds with both trainers and each seed."""
    if not source().endswith(HH):
        print("harmless: set PREFINE_DATA to the folder of harmless-base", flush=True)
        return
    require_settings(folder, model=MODEL, dtype=dtype, sizes=[TRAIN, HELD_OUT, BATCH], learning_rates=LEARNING_RATES)
    for seed in seeds:
        for stage in LEARNING_RATES:
            for trainer in (ours, trl):
                path = folder / f"{stage}-{trainer.__name__}-{seed}.json"
                found = kept(path, lambda trainer=trainer, stage=stage, seed=seed: _apart(trainer, stage, seed, dtype))
                interval = Share(found["accuracy"], HELD_OUT).interval
                assert interval is not None
                share = f"{found['accuracy']:.3f} ({interval.low:.3f} to {interval.high:.3f})"
                print(f"{stage}, {trainer.__name__}, seed {seed}: held-out accuracy {share}", flush=True)


def _apart(trainer: Any, stage: str, seed: int, dtype: str) -> dict[str, float]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found: dict[str, float] = pool.apply(trainer, (stage, seed, dtype))
    assert all(map(math.isfinite, found.values()))
    return found


def _split() -> tuple[list[Preference], list[Preference]]:
    found = pairs(TRAIN + HELD_OUT)
    return found[:TRAIN], found[TRAIN:]


def ours(stage: str, seed: int, dtype: str) -> dict[str, float]:
    """Held-out accuracy and loss after one epoch with prefine."""
    import prefine

    train, heldout = _split()
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
                "seed": seed,
                "evaluate_every_steps": None,
            },
        }
        if stage == "dpo":
            recipe["report"] = {"samples": 0}
        found = {"dpo": prefine.dpo, "reward": prefine.reward}[stage](recipe).evaluation["heldout"]["after"]
    return {"accuracy": found["accuracy"], "loss": found["loss"]}


def trl(stage: str, seed: int, dtype: str) -> dict[str, float]:
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
    trainer_kind, config_kind = {"dpo": (DPOTrainer, DPOConfig), "reward": (RewardTrainer, RewardConfig)}[stage]
    train, heldout = _split()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = trainer_kind(
            auto.from_pretrained(where, dtype=getattr(torch, dtype), **({"num_labels": 1} if scores else {})),
            args=config_kind(
                output_dir=scratch,
                num_train_epochs=1,
                per_device_train_batch_size=BATCH // 2,
                per_device_eval_batch_size=BATCH // 2,
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
        found = trainer.evaluate()
    accuracy = "eval_rewards/accuracies" if stage == "dpo" else "eval_accuracy"
    return {"accuracy": found[accuracy], "loss": found["eval_loss"]}
