"""Time prefine's own stage: python -m benchmarks.ours dpo|sft|reward [--pairs 32] [--batch-size 4] [--dtype float32].

With --microbatch-tokens 1024 and --batch-size 8, the memory is that of DPO on the token budget of benchmarks.ppo.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.flops import step_flops
from benchmarks.work import (
    PAIRS_A_STEP,
    add_dtype,
    dtype_name,
    fresh_cache,
    pairs,
    peak_memory_gb,
    recipe,
    tell,
    write_pairs,
)
from prefine.data.tokens.store import TokenStore
from prefine.data.tokens.trees import TokenTree, collate
from prefine.models.loading.device import matmul_rates
from prefine.runs.directory import read_metrics
from prefine.training.loop.schedule import rows_of_step
from prefine.training.stages.dpo import run_dpo
from prefine.training.stages.reward import run_reward
from prefine.training.stages.sft import run_sft


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=["dpo", "sft", "reward"])
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=PAIRS_A_STEP)
    parser.add_argument("--microbatch-tokens", type=int, default=4096)
    add_dtype(parser)
    args = parser.parse_args()
    dtype = dtype_name(args.dtype)
    rate = matmul_rates(torch.device("cpu"))[dtype]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PREFINE_CACHE"] = str(fresh_cache(Path(folder)))
        data, run = Path(folder) / "pairs.jsonl", Path(folder) / "run"
        write_pairs(data, pairs(args.pairs))
        steps, most = args.pairs // args.batch_size, args.microbatch_tokens
        made = recipe(args.stage, data, run, steps, dtype, args.batch_size, max_tokens_per_microbatch=most)
        {"dpo": run_dpo, "sft": run_sft, "reward": run_reward}[args.stage](made, False, Console(stderr=True))  # type: ignore[operator]
        rows = [row for row in read_metrics(run / "metrics.jsonl") if row["kind"] == "train"]
        manifest = json.loads((run / "manifest.json").read_text())
        flops = [_flops(args.stage, made, run / "data" / "train.arrow", step) for step in range(len(rows))]
    rate = max(rate, matmul_rates(torch.device("cpu"))[dtype])
    seconds = [row["seconds"] for row in rows]
    after_first = sum(seconds[1:])
    tell(
        {
            "seconds_a_step": after_first / (len(seconds) - 1),
            "reference_seconds_a_step": manifest.get("reference_seconds", 0.0) / len(seconds),
            "tokens_a_step": sum(row["tokens"] for row in rows[1:]) / (len(seconds) - 1),
            "gflops": sum(flops[1:]) / after_first / 1e9,
            "peak_gflops": rate,
            "memory_gb": peak_memory_gb(),
        }
    )


def _flops(stage: str, made: Any, store: Path, step: int) -> float:
    trees = TokenStore(store)
    chosen: list[TokenTree] = [trees[row] for row in rows_of_step(step, len(trees), made.training)]
    return step_flops(
        collate(chosen).segments, 0 if stage == "reward" else sum(tree.supervised_tokens for tree in chosen)
    )


if __name__ == "__main__":
    main()
