"""python -m benchmarks: prefine and its peers in turns; prints tables of ratios and writes them as JSON.

Run it on a machine that does nothing else. Absolute times differ between machines; the ratios are what counts. Both
sides compute in the type that `prefine doctor` chooses on this machine, unless --dtype names another.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.coverage import TRIALS, coverage
from benchmarks.startup import first_step_seconds, help_seconds, reading_seconds
from benchmarks.tables import mean, tables
from benchmarks.work import PAIRS_A_STEP, PPO_MICROBATCH_TOKENS, add_dtype, dtype_name, source
from prefine.models.loading.device import device_report, matmul_rates
from prefine.models.loading.embedded import embedded_folder

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Size:
    """How much of everything is measured."""

    dtype: str
    rounds: int = 2
    pairs: int = 32
    scored_pairs: int = 128
    sequences: int = 64
    slots: tuple[int, ...] = (1, 8, 16, 32, 64, 128)
    tail: tuple[int, int] = (128, 32)
    clients: tuple[int, ...] = (1, 8, 32)
    updates: int = 2
    steps: tuple[int, ...] = (1, 2, 4)
    trials: int = TRIALS


def run(module: str, *arguments: object) -> dict[str, float]:
    """Run one measurement in a process of its own, so that its peak memory is its own."""
    words = [str(each) for each in arguments]
    done = subprocess.run(
        [sys.executable, "-m", module, *words],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    results = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not results:
        sys.exit(f"{module} {' '.join(words)} failed:\n{done.stderr[-3000:]}")
    result: dict[str, float] = json.loads(results[-1].removeprefix("RESULT "))
    return result


def versus(stage: str, size: Size) -> dict[str, Any]:
    """prefine and TRL in turns."""
    ours: list[dict[str, float]] = []
    theirs: list[dict[str, float]] = []
    for _ in range(size.rounds):
        ours.append(run("benchmarks.ours", stage, "--pairs", size.pairs, "--dtype", size.dtype))
        theirs.append(run("benchmarks.peer_trl", stage, "--pairs", size.pairs, "--dtype", size.dtype))
    step, peer = mean(ours, "seconds_a_step"), mean(theirs, "seconds_a_step")
    return {
        "ours": ours,
        "trl": theirs,
        "speed_ratio": peer / step,
        "speed_ratio_with_reference": peer / (step + mean(ours, "reference_seconds_a_step")),
        "memory_ratio": mean(theirs, "memory_gb") / mean(ours, "memory_gb"),
        "share_of_peak": mean(ours, "gflops") / mean(ours, "peak_gflops"),
    }


def scoring(size: Size) -> dict[str, Any]:
    """prefine's scores and a loop over padded batches in turns."""
    ours: list[dict[str, float]] = []
    theirs: list[dict[str, float]] = []
    for _ in range(size.rounds):
        for how, results in (("packed", ours), ("padded", theirs)):
            results.append(run("benchmarks.score", how, "--pairs", size.scored_pairs, "--dtype", size.dtype))
    return {"ours": ours, "padded": theirs, "speed_ratio": mean(theirs, "seconds") / mean(ours, "seconds")}


def writing(size: Size) -> dict[str, Any]:
    """prefine's slots and its peers in turns, vLLM where PREFINE_VLLM names an interpreter that has it.

    Then by slots, and with lengths of a long tail.
    """

    def timed(who: str, sequences: int, *more: object) -> dict[str, float]:
        return run("benchmarks.generation", who, "--sequences", sequences, "--dtype", size.dtype, *more)

    ours: list[dict[str, float]] = []
    peers: dict[str, list[dict[str, float]]] = {"hf": [], **({"vllm": []} if "PREFINE_VLLM" in os.environ else {})}
    for _ in range(size.rounds):
        ours.append(timed("ours", size.sequences))
        for who, results in peers.items():
            results.append(timed(who, size.sequences))
    sequences, slots = size.tail
    return {
        "sequences": size.sequences,
        "tail": size.tail,
        "ours": ours,
        "peers": peers,
        "shares": timed("ours", size.sequences, "--profile"),
        "by_slots": {n: timed("ours", n) for n in size.slots},
        "long_tail": {who: timed(who, sequences, "--slots", slots, "--tail") for who in ("ours", "hf")},
    }


def serving(size: Size) -> dict[str, Any]:
    """prefine's server, its bare writer and other servers in turns: transformers, and those that the environment names.

    vLLM where PREFINE_VLLM is set; llama.cpp where PREFINE_LLAMA_CPP and PREFINE_GGUF, a file of that model, are.
    """
    who: dict[str, tuple[str, ...]] = {"ours": (), "bare": (), "transformers": ()}
    if "PREFINE_VLLM" in os.environ:
        who["vllm"] = ()
    if {"PREFINE_LLAMA_CPP", "PREFINE_GGUF"} <= os.environ.keys():
        who["llama.cpp"] = ("--gguf", os.environ["PREFINE_GGUF"])
    found: dict[str, list[dict[str, float]]] = {name: [] for name in who}
    clients = ",".join(map(str, size.clients))
    for _ in range(size.rounds):
        for name, more in who.items():
            asked = ("--requests", size.sequences, "--clients", clients, "--dtype", size.dtype, *more)
            found[name].append(run("benchmarks.serving", name, *asked))
    return {"requests": size.sequences, "clients": size.clients, "servers": found}


def ppo(size: Size) -> dict[str, Any] | None:
    """prefine's updates and those of TRL 1.10 in turns, and DPO's memory on the same token budget.

    None where PREFINE_TRL_PPO names no folder with it.
    """
    if "PREFINE_TRL_PPO" not in os.environ:
        return None
    ours: list[dict[str, float]] = []
    theirs: list[dict[str, float]] = []
    for _ in range(size.rounds):
        for who, results in (("ours", ours), ("trl", theirs)):
            results.append(run("benchmarks.ppo", who, "--updates", size.updates, "--dtype", size.dtype))
    dpo = ("dpo", "--batch-size", 8, "--microbatch-tokens", PPO_MICROBATCH_TOKENS, "--pairs", max(16, size.pairs))
    return {
        "ours": ours,
        "trl": theirs,
        "speed_ratio": mean(theirs, "seconds") / mean(ours, "seconds"),
        "memory_ratio": mean(theirs, "memory_gb") / mean(ours, "memory_gb"),
        "dpo": run("benchmarks.ours", *dpo, "--dtype", size.dtype),
    }


def scaling(size: Size) -> dict[int, dict[str, float]]:
    """Seconds a token as a step grows to twice and four times the pairs; by pairs a step."""
    steps = {PAIRS_A_STEP * k: size.pairs * k for k in size.steps}
    return {
        batch: run("benchmarks.ours", "dpo", "--pairs", pairs, "--batch-size", batch, "--dtype", size.dtype)
        for batch, pairs in steps.items()
    }


def waits(size: Size) -> dict[str, float]:
    """Seconds until something happens."""
    return {
        "prefine --help": help_seconds(),
        "reading 100,000 pairs": reading_seconds(),
        "start to first SFT step": first_step_seconds("sft", size.dtype),
        "start to first DPO step, reference of 64 pairs included": first_step_seconds("dpo", size.dtype),
    }


PARTS: dict[str, Callable[[Size], Any]] = {
    "dpo": lambda size: versus("dpo", size),
    "sft": lambda size: versus("sft", size),
    "reward": lambda size: versus("reward", size),
    "score": scoring,
    "generation": writing,
    "serving": serving,
    "ppo": ppo,
    "scaling": scaling,
    "waits": waits,
    "coverage": lambda size: coverage(size.trials),
}


def machine() -> dict[str, Any]:
    """The processor, what it can do and how fast: `prefine doctor`'s own figures."""
    cpu = torch.device("cpu")
    report = device_report(cpu)
    told = {name: report[name] for name in ("name", "cores", "threads", "instructions", "memory_total_gb")}  # type: ignore[literal-required]
    return {**told, "matmul_gflops": matmul_rates(cpu)}


def parts(text: str) -> list[str]:
    """The parts that `--only` names."""
    named = [name.strip() for name in text.split(",")]
    if unknown := [name for name in named if name not in PARTS]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: no such part; there are {', '.join(PARTS)}")
    return named


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", type=parts, default=list(PARTS), metavar="PART,…", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--quick", action="store_true", help="show that each part runs; its figures mean nothing")
    add_dtype(parser)
    args = parser.parse_args()
    size = Size(dtype_name(args.dtype), args.rounds, args.pairs)
    if args.quick:
        size = Size(size.dtype, 1, 8, 4, 4, slots=(1, 4), tail=(8, 4), clients=(1,), updates=1, steps=(1,), trials=16)
    embedded_folder("embedded:smollm2-135m")  # converted before anything is timed
    results: dict[str, Any] = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "dtype": size.dtype,
        "quick": args.quick,
        "source": Path(source()).name,
        "pairs": size.pairs,
    }
    console = Console()
    for name in args.only:
        console.print(f"measuring {name}", style="dim")
        results[name] = PARTS[name](size)
    for table in tables(results):
        console.print(table)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{results['when'].replace(':', '')}.json"
    path.write_text(json.dumps(results, indent=2))
    console.print(f"written to {path}")


if __name__ == "__main__":
    main()
