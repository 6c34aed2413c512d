"""Time TRL's trainer on the same pairs: python -m benchmarks.peer_trl dpo|sft|reward [--pairs 32] [--dtype float32]."""

from __future__ import annotations

import argparse
import tempfile
import time
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from benchmarks.work import (
    LORA_RANK,
    MAX_LENGTH_TOKENS,
    PAIRS_A_STEP,
    add_dtype,
    dtype_name,
    pairs,
    peak_memory_gb,
    tell,
)
from prefine.models.loading.embedded import embedded_folder
from prefine.records import Preference


class StepClock(TrainerCallback):
    """Seconds from the begin to the end of every optimiser step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._begin = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.perf_counter() - self._begin)


def rows(stage: str, records: list[Preference]) -> Dataset:
    """Records with TRL's own columns."""

    def answer(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    made = []
    for record in records:
        prompt = [message.model_dump() for message in record.prompt]
        if stage in ("dpo", "reward"):
            made.append({"prompt": prompt, "chosen": answer(record.chosen), "rejected": answer(record.rejected)})
        else:
            made.append({"prompt": prompt, "completion": answer(record.chosen)})
    return Dataset.from_list(made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=["dpo", "sft", "reward"])
    parser.add_argument("--pairs", type=int, default=32)
    add_dtype(parser)
    args = parser.parse_args()
    dtype = getattr(torch, dtype_name(args.dtype))
    folder = embedded_folder("embedded:smollm2-135m")
    clock = StepClock()
    settings: dict[str, Any] = {
        "per_device_train_batch_size": PAIRS_A_STEP,
        "max_steps": args.pairs // PAIRS_A_STEP,
        "max_length": MAX_LENGTH_TOKENS,
        "learning_rate": 5e-5,
        "bf16": dtype == torch.bfloat16,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": [],
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    scores = args.stage == "reward"
    task: dict[str, Any] = (
        {"task_type": "SEQ_CLS", "modules_to_save": ["score"]} if scores else {"task_type": "CAUSAL_LM"}
    )
    lora = LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules="all-linear", **task)
    kinds = {
        "dpo": (DPOTrainer, DPOConfig),
        "sft": (SFTTrainer, SFTConfig),
        "reward": (RewardTrainer, RewardConfig),
    }
    trainer_kind, config_kind = kinds[args.stage]
    auto: Any = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
    labels = {"num_labels": 1} if scores else {}
    with tempfile.TemporaryDirectory() as out:
        trainer = trainer_kind(
            auto.from_pretrained(folder, dtype=dtype, **labels),
            args=config_kind(output_dir=out, **settings),
            train_dataset=rows(args.stage, pairs(args.pairs)),
            processing_class=AutoTokenizer.from_pretrained(folder),
            peft_config=lora,
            callbacks=[clock],
        )
        trainer.train()
    after_first = clock.seconds[1:]
    tell({"seconds_a_step": sum(after_first) / len(after_first), "memory_gb": peak_memory_gb()})


if __name__ == "__main__":
    main()
