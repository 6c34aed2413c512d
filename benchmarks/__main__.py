"""python -m benchmarks: prefine and TRL in turns, two rounds; prints a table of ratios and writes it as JSON.

Run it on a machine that does nothing else. Absolute times drift between machines; the ratios are what counts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.startup import first_step_seconds, help_seconds, reading_seconds
from benchmarks.tables import mean, tables
from benchmarks.work import PAIRS_A_STEP, PPO_MICROBATCH_TOKENS, source
from prefine.models.embedded import embedded_folder

SLOTS = (1, 8, 16, 32, 64, 128)
RESULTS = Path(__file__).parent / "results"


def run(module: str, *arguments: str) -> dict[str, float]:
    """Run one measurement in a process of its own, so that its peak memory is its own."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    results = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not results:
        sys.exit(f"{module} {' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    result: dict[str, float] = json.loads(results[-1].removeprefix("RESULT "))
    return result


def versus(stage: str, rounds: int, number: int) -> dict[str, Any]:
    """prefine and TRL in turns."""
    ours: list[dict[str, float]] = []
    theirs: list[dict[str, float]] = []
    for _ in range(rounds):
        ours.append(run("benchmarks.ours", stage, "--pairs", str(number)))
        theirs.append(run("benchmarks.peer_trl", stage, "--pairs", str(number)))
    step, peer = mean(ours, "seconds_a_step"), mean(theirs, "seconds_a_step")
    return {
        "ours": ours,
        "trl": theirs,
        "speed_ratio": peer / step,
        "speed_ratio_with_reference": peer / (step + mean(ours, "reference_seconds_a_step")),
        "memory_ratio": mean(theirs, "memory_gb") / mean(ours, "memory_gb"),
        "share_of_bf16_peak": mean(ours, "gflops") / mean(ours, "bf16_peak_gflops"),
    }


def scoring(rounds: int) -> dict[str, Any]:
    """prefine's scores and a loop over padded batches in turns."""
    ours: list[dict[str, float]] = []
    theirs: list[dict[str, float]] = []
    for _ in range(rounds):
        ours.append(run("benchmarks.score", "packed"))
        theirs.append(run("benchmarks.score", "padded"))
    return {"ours": ours, "padded": theirs, "speed_ratio": mean(theirs, "seconds") / mean(ours, "seconds")}


def writing(rounds: int) -> dict[str, Any]:
    """prefine's slots and its peers in turns, vLLM where PREFINE_VLLM names an interpreter that has it.

    Then by slots, and with lengths of a long tail.
    """
    ours: list[dict[str, float]] = []
    peers: dict[str, list[dict[str, float]]] = {"hf": [], **({"vllm": []} if "PREFINE_VLLM" in os.environ else {})}
    for _ in range(rounds):
        ours.append(run("benchmarks.generation", "ours"))
        for who, results in peers.items():
            results.append(run("benchmarks.generation", who))
    return {
        "ours": ours,
        "peers": peers,
        "shares": run("benchmarks.generation", "ours", "--profile"),
        "by_slots": {n: run("benchmarks.generation", "ours", "--sequences", str(n)) for n in SLOTS},
        "long_tail": {
            who: run("benchmarks.generation", who, "--sequences", "128", "--slots", "32", "--tail")
            for who in ("ours", "hf")
        },
    }


def ppo(rounds: int) -> dict[str, Any] | None:
    """prefine's updates and those of TRL 1.10 in turns, and DPO's memory on the same token budget.

    None where PREFINE_TRL_PPO names no folder with it.
    """
    if "PREFINE_TRL_PPO" not in os.environ:
        return None
    ours: list[dict[str, float]] = []
    theirs: list[dict[str, float]] = []
    for _ in range(rounds):
        ours.append(run("benchmarks.ppo", "ours", "--updates", "2"))
        theirs.append(run("benchmarks.ppo", "trl", "--updates", "2"))
    return {
        "ours": ours,
        "trl": theirs,
        "speed_ratio": mean(theirs, "seconds") / mean(ours, "seconds"),
        "memory_ratio": mean(theirs, "memory_gb") / mean(ours, "memory_gb"),
        "dpo": run("benchmarks.ours", "dpo", "--batch-size", "8", "--microbatch-tokens", str(PPO_MICROBATCH_TOKENS)),
    }


def scaling(number: int) -> list[dict[str, float]]:
    """Seconds a token as a step grows to twice and four times the pairs."""
    return [
        run("benchmarks.ours", "dpo", "--pairs", str(number * k), "--batch-size", str(PAIRS_A_STEP * k))
        for k in (1, 2, 4)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=32)
    args = parser.parse_args()
    embedded_folder("embedded:smollm2-135m")  # converted before anything is timed
    results: dict[str, Any] = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "source": Path(source()).name,
        "pairs": args.pairs,
        "dpo": versus("dpo", args.rounds, args.pairs),
        "sft": versus("sft", args.rounds, args.pairs),
        "reward": versus("reward", args.rounds, args.pairs),
        "score": scoring(args.rounds),
        "generation": writing(args.rounds),
        "ppo": ppo(args.rounds),
        "scaling": scaling(args.pairs),
        "waits": {
            "prefine --help": help_seconds(),
            "reading 100,000 pairs": reading_seconds(),
            "start to first SFT step": first_step_seconds("sft"),
            "start to first DPO step, reference of 64 pairs included": first_step_seconds("dpo"),
        },
    }
    console = Console()
    for table in tables(results):
        console.print(table)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{results['when'].replace(':', '')}.json"
    path.write_text(json.dumps(results, indent=2))
    console.print(f"written to {path}")


if __name__ == "__main__":
    main()
