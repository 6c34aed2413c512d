"""TRL 1.10's PPO trainer, the last release with one, as the benchmarks of PPO make it.

pip install --no-deps --target FOLDER trl==1.10.0, and name FOLDER in PREFINE_TRL_PPO.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.work import LORA_RANK
from prefine.models.loading.embedded import embedded_folder
from prefine.records import Prompt

MODEL = "embedded:smollm2-135m"
# SmolLM2's pad token ends its turns, too; TRL hides every pad token from the model, also in a prompt.
_PAD = "<|endoftext|>"
_ANSWERS_A_MICROBATCH = 4


def use_trl_1_10() -> None:
    """Import that release from now on."""
    sys.path.insert(0, os.environ["PREFINE_TRL_PPO"])
    if (found := version("trl")) != "1.10.0":
        raise RuntimeError(f"PREFINE_TRL_PPO holds TRL {found}, not 1.10.0")


def tokenizer_for_ppo() -> Any:
    """The embedded model's, with a pad token, 0, that no prompt holds."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(embedded_folder(MODEL), padding_side="left", pad_token=_PAD)
    assert tokenizer.pad_token_id == 0
    return tokenizer


def prompt_ids(tokenizer: Any, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Their tokens, up to where the answer begins."""
    return [
        tokenizer.apply_chat_template(
            [message.model_dump() for message in prompt.prompt], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        for prompt in prompts
    ]


def ppo_trainer(
    folder: Path,
    tokenizer: Any,
    asked: Sequence[Sequence[int]],
    reward_model: Any,
    *,
    answers: int,
    new_tokens: int,
    epochs: int,
    dtype: str,
    **settings: Any,
) -> Any:
    """A trainer with LoRA on the policy, and a value model of the same size.

    Args:
        folder: for what it writes.
        asked: the tokens of the prompts, one answer each.
        reward_model: None for one with a random head.
        answers: of an update. new_tokens: of an answer. epochs: optimiser steps on an update's answers: TRL adds up the
            gradients of as many micro-batches as an update has.
        settings: further ones of PPOConfig.
    """
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    where, rows = embedded_folder(MODEL), [{"input_ids": ids, "lengths": len(ids)} for ids in asked]

    def scorer() -> Any:
        return AutoModelForSequenceClassification.from_pretrained(where, num_labels=1, dtype=torch.float32)

    trainer = PPOTrainer(
        args=PPOConfig(
            output_dir=str(folder),
            use_cpu=True,
            bf16=dtype == "bfloat16",
            per_device_train_batch_size=_ANSWERS_A_MICROBATCH,
            gradient_accumulation_steps=answers // _ANSWERS_A_MICROBATCH,
            num_mini_batches=1,
            num_ppo_epochs=epochs,
            total_episodes=len(rows),
            response_length=new_tokens,
            stop_token="eos",  # noqa: S106 - no password
            local_rollout_forward_batch_size=answers,
            report_to=[],
            logging_steps=1,
            save_strategy="no",
            num_sample_generations=0,
            **settings,
        ),
        processing_class=tokenizer,
        model=AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32),
        ref_model=None,
        reward_model=scorer() if reward_model is None else reward_model,
        value_model=scorer(),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows[:4]),
        peft_config=LoraConfig(
            r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )
    # Else accelerate ends the accumulation after each micro-batch of the data's last batch: TRL would take an optimiser
    # step on each four answers of the last update.
    trainer.accelerator.gradient_state.plugin_kwargs["sync_with_dataloader"] = False
    return trainer


def require_steps(trainer: Any, steps: int) -> None:
    """Check how many optimiser steps a trained trainer took on each of its weights."""
    taken = {int(each["step"]) for each in trainer.optimizer.state.values()}
    if taken != {steps}:
        raise RuntimeError(f"TRL took {sorted(taken)} optimiser steps, not {steps}")
