"""Time PPO updates of 16 answers of 64 tokens: python -m benchmarks.ppo ours|trl [--updates 3] [--dtype float32].

The peer is TRL 1.10: see benchmarks/peer_trl_ppo.py. Ours writes all 64 tokens of every answer, whatever they are; TRL
may end some before. The first update also makes what is made once, the kernels for instance: of more, it is left out,
on both sides.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from benchmarks.peer_trl_ppo import ppo_trainer, prompt_ids, require_steps, tokenizer_for_ppo, use_trl_1_10
from benchmarks.work import (
    LORA_RANK,
    PPO_MICROBATCH_TOKENS,
    add_dtype,
    dtype_name,
    peak_memory_gb,
    recipe,
    short_prompts,
    tell,
    write_pairs,
)
from prefine.records import Prompt

ANSWERS, NEW_TOKENS, EPOCHS = 16, 64, 2


def ours(prompts: list[Prompt], updates: int, dtype: str) -> dict[str, float]:
    """Seconds of each phase of an update; a reward run of one step stands in for a good one: it costs the same."""
    from rich.console import Console

    from benchmarks.work import pairs
    from prefine.recipe.rl import PpoRecipe
    from prefine.recipe.sections import ModelSection
    from prefine.runs.directory import read_metrics
    from prefine.training.rl.stage import LoadedPolicy, PpoStage
    from prefine.training.run.run_stage import run_stage

    class WritesOn(PpoStage):
        """Ends no answer before its last token."""

        def load(self, section: ModelSection) -> LoadedPolicy:
            loaded = super().load(section)
            loaded.template.stop_ids = frozenset()
            return loaded

    with tempfile.TemporaryDirectory() as folder:
        data, reward = Path(folder) / "pairs.jsonl", Path(folder) / "reward"
        write_pairs(data, pairs(4))
        # In a process of its own, so that the peak memory is that of PPO alone.
        train = multiprocessing.get_context("spawn").Process(target=_train_reward, args=(data, reward, dtype))
        train.start()
        train.join()
        asked = Path(folder) / "prompts.jsonl"
        asked.write_text("".join(p.model_dump_json(include={"prompt"}) + "\n" for p in prompts))
        made = PpoRecipe.model_validate(
            {
                "run": f"{folder}/ppo",
                "model": {"name": "embedded:smollm2-135m", "dtype": dtype},
                "lora": {"r": LORA_RANK, "alpha": 2.0 * LORA_RANK},
                "data": {"train": str(asked), "heldout_fraction": 0.0, "max_length_tokens": 512},
                "training": {
                    "batch_size": ANSWERS,
                    "max_steps": updates,
                    "save_every_steps": None,
                    "epochs": 100.0,
                    "max_tokens_per_microbatch": PPO_MICROBATCH_TOKENS,
                },
                "reward": {"name": str(reward)},
                "rollout": {"max_new_tokens": NEW_TOKENS, "heldout_prompts": 0},
                "ppo": {"epochs": EPOCHS, "minibatches": 1, "max_kl": None},
                "report": {"samples": 0},
            }
        )
        run_stage(WritesOn(made, force=True), False, Console(stderr=True))
        rows = [row for row in read_metrics(Path(made.run) / "metrics.jsonl") if row["kind"] == "train"]
    phases = [name for name in rows[0] if name.startswith("seconds")]
    later = rows[1:] or rows
    means = {name: statistics.fmean(row[name] for row in later) for name in phases}
    return {**means, "seconds_first": rows[0]["seconds"]}


def _train_reward(data: Path, run: Path, dtype: str) -> None:
    from rich.console import Console

    from prefine.training.stages.reward import run_reward

    run_reward(recipe("reward", data, run, 1, dtype), False, Console(stderr=True))  # type: ignore[arg-type]


class _Watch(TrainerCallback):  # type: ignore[misc]
    """When training began and each update ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.times.append(time.perf_counter())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.times.append(time.perf_counter())


def trl(prompts: list[Prompt], updates: int, dtype: str) -> dict[str, float]:
    """Seconds an update of TRL's trainer: LoRA on the policy, a reward and a value model of the same size."""
    use_trl_1_10()
    tokenizer = tokenizer_for_ppo()
    asked = prompt_ids(tokenizer, prompts[: ANSWERS * updates])
    with tempfile.TemporaryDirectory() as folder:
        trainer = ppo_trainer(
            Path(folder),
            tokenizer,
            asked,
            None,
            answers=ANSWERS,
            new_tokens=NEW_TOKENS,
            epochs=EPOCHS,
            dtype=dtype,
            missing_eos_penalty=1.0,
            learning_rate=1e-5,
        )
        watch = _Watch()
        trainer.add_callback(watch)
        trainer.train()
        require_steps(trainer, EPOCHS * updates)
    seconds = [after - before for before, after in itertools.pairwise(watch.times)]
    return {"seconds": statistics.fmean(seconds[1:] or seconds), "seconds_first": seconds[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("who", choices=["ours", "trl"])
    parser.add_argument("--updates", type=int, default=3)
    add_dtype(parser)
    args = parser.parse_args()
    prompts = short_prompts(ANSWERS * args.updates)
    found = {"ours": ours, "trl": trl}[args.who](prompts, args.updates, dtype_name(args.dtype))
    tell({**found, "memory_gb": peak_memory_gb()})


if __name__ == "__main__":
    main()
