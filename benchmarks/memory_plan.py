"""Predicted and measured peak memory: python -m benchmarks.memory_plan [--sizes 30M] [--lengths 256].

Each cell trains a few steps of a stage in a process of its own, on rows of one length that fill the token budget, and
compares the largest resident memory of that process with `prefine plan`. Models have random weights: memory depends on
shapes only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.work import peak_memory_gb, tell


def _shape(hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": intermediate,
    }


STAGES = ("sft", "reward", "dpo", "ppo")
# Shapes of Llama models; 135M and 360M are those of SmolLM2.
SIZES: dict[str, dict[str, int]] = {
    "30M": _shape(320, 10, 5, 5, 960),
    "135M": _shape(576, 30, 9, 3, 1536),
    "360M": _shape(960, 32, 15, 5, 2560),
}
LENGTHS = (256, 1024)
# Fewer for the largest, so that a step takes a minute.
TOKENS_PER_MICROBATCH = {"30M": 2048, "135M": 2048, "360M": 1024}
STEPS = 2
HELDOUT = 2


def make_model(size: str, folder: Path) -> Path:
    """A random Llama of a size, in bfloat16 as models are published, with the embedded model's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from prefine.models.loading.embedded import embedded_folder

    if folder.exists():
        return folder
    words = AutoTokenizer.from_pretrained(embedded_folder("embedded:smollm2-135m"))
    ids = {f"{name}_token_id": getattr(words, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = LlamaConfig(
        vocab_size=49_152, max_position_embeddings=8192, tie_word_embeddings=True, **SIZES[size], **ids
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def make_rows(stage: str, length: int, count: int, path: Path) -> Path:
    """Rows whose prompt and answer have `length` tokens together, half of them each."""

    def text(number: int, tokens: int, word: str) -> str:
        return f"{number}" + f" {word}" * tokens  # a token a word

    half = length // 2 - 24  # the rest is the template's; a prompt that was cut would begin as the others do
    rows: list[dict[str, str]] = []
    for number in range(count):
        row = {"prompt": text(number, half - 24, "time")}
        if stage == "sft":
            row["completion"] = text(number, half, "people")
        elif stage != "ppo":
            row |= {"chosen": text(number, half, "people"), "rejected": text(number, half, "water")}
        rows.append(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_a_step(stage: str, length: int, budget: int) -> int:
    """Rows that fill one microbatch."""
    tree = length * 3 // 2 if stage in ("reward", "dpo") else length
    return max(1, budget // tree)


def values(stage: str, length: int, budget: int, dtype: str, model: Path, folder: Path, reward: Path) -> dict[str, Any]:
    """The cell's recipe."""
    batch = rows_a_step(stage, length, budget)
    found: dict[str, Any] = {
        "run": str(folder / "run"),
        "model": {"name": str(model), "dtype": dtype, "device": "cpu"},
        "data": {
            "train": str(folder / "train.jsonl"),
            "heldout": str(folder / "heldout.jsonl"),
            "max_length_tokens": length,
        },
        "training": {
            "batch_size": batch,
            "max_steps": STEPS,
            "epochs": 100.0,
            "max_tokens_per_microbatch": budget,
        },
    }
    if stage != "reward":
        found["report"] = {"samples": HELDOUT, "max_new_tokens": 32}
    if stage == "ppo":
        found["reward"] = {"name": str(reward)}
        found["training"] |= {"batch_size": 2 * batch, "max_steps": 1}
        found["rollout"] = {"max_new_tokens": length // 2, "heldout_prompts": HELDOUT, "heldout_samples": 1}
    return found


def run_cell(stage: str, made: dict[str, Any], timeline: Path | None) -> None:
    """Train a cell's recipe in this process and tell its peak."""
    import prefine

    if timeline is not None:
        threading.Thread(target=_record, args=(timeline,), daemon=True).start()
    options = {"force": True} if stage == "ppo" else {}
    getattr(prefine, stage)(made, display=False, **options)
    tell({"measured_gb": peak_memory_gb()})


def _record(path: Path) -> None:
    """Write resident memory and what runs, every 20 ms."""
    import psutil

    own, main = psutil.Process(), threading.main_thread().ident
    with path.open("w") as file:
        while True:
            frame = sys._current_frames().get(main or 0)
            names = []
            while frame is not None:
                if "prefine" in frame.f_code.co_filename:
                    names.append(f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}")
                frame = frame.f_back
            file.write(f"{time.time():.2f} {own.memory_info().rss / 1e9:.3f} {' < '.join(names[:5])}\n")
            file.flush()
            time.sleep(0.02)


def measured(stage: str, made: dict[str, Any], folder: Path, *, timeline: bool) -> float:
    """The peak of a cell in GB, by a process of its own."""
    made_file = folder / "recipe.json"
    made_file.write_text(json.dumps(made))
    command = [sys.executable, "-m", "benchmarks.memory_plan", "--cell", stage, str(made_file)]
    command += ["--timeline", str(folder / "timeline.txt")] if timeline else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    last = done.stdout.strip().splitlines()[-1].removeprefix("RESULT ")
    return float(json.loads(last)["measured_gb"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stages", nargs="+", default=STAGES)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES))
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS)
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    parser.add_argument("--folder", type=Path, default=Path("memory_plan"), help="models, runs and results; kept")
    parser.add_argument("--timeline", help=argparse.SUPPRESS)
    parser.add_argument("--cell", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cell:
        recipe = json.loads(Path(args.cell[1]).read_text())
        run_cell(args.cell[0], recipe, None if args.timeline is None else Path(args.timeline))
        return
    print("| stage | model | length | type | predicted | measured | ratio |\n|---|---|---|---|---|---|---|")
    for size in args.sizes:
        model = make_model(size, args.folder / size)
        for dtype in args.dtypes:
            for length in args.lengths:
                for stage in args.stages:
                    row = cell(stage, size, length, dtype, model, args.folder, timeline=args.timeline is not None)
                    print(row, flush=True)


def cell(stage: str, size: str, length: int, dtype: str, model: Path, root: Path, *, timeline: bool) -> str:
    """A row of the table; a cell that was measured before is not measured again."""
    folder = root / f"{stage}-{size}-{length}-{dtype}"
    result = folder / "result.json"
    folder.mkdir(parents=True, exist_ok=True)
    budget = TOKENS_PER_MICROBATCH[size]
    made = values(stage, length, budget, dtype, model, folder, root / f"reward-{size}-{length}-{dtype}" / "run")
    if not result.exists():
        make_rows(stage, length, 4 * rows_a_step(stage, length, budget), folder / "train.jsonl")
        make_rows(stage, length, 1000 + HELDOUT, folder / "all.jsonl")
        lines = (folder / "all.jsonl").read_text().splitlines(keepends=True)
        (folder / "heldout.jsonl").write_text("".join(lines[-HELDOUT:]))
        result.write_text(json.dumps({"measured_gb": measured(stage, made, folder, timeline=timeline)}))
    found = float(json.loads(result.read_text())["measured_gb"])
    said = predicted(stage, made)
    return f"| {stage} | {size} | {length} | {dtype} | {said:.2f} | {found:.2f} | {said / found:.2f} |"


def predicted(stage: str, made: dict[str, Any]) -> float:
    """The peak that `prefine plan` says, GB."""
    from prefine.planning.machine import machine_for
    from prefine.planning.plan import plan_stage
    from prefine.recipe.python import recipe_from
    from prefine.recipe.registry import RECIPES

    recipe = recipe_from(made, {}, RECIPES[stage])
    return plan_stage(recipe, method=stage, machine=machine_for("cpu", measured=False)).peak_bytes / 1e9


if __name__ == "__main__":
    main()
