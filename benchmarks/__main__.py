"""python -m benchmarks: prefine and TRL in turns, two rounds; prints a table of ratios and writes it as JSON.

Run it on a machine that does nothing else. Absolute times drift between machines; the ratios are what counts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.startup import first_step_seconds, help_seconds, reading_seconds
from benchmarks.work import PAIRS_A_STEP, source
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


def mean(results: list[dict[str, float]], name: str) -> float:
    """Mean over rounds."""
    return statistics.fmean(result[name] for result in results)


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
    """prefine's slots and transformers' generate in turns; then by slots, and with lengths of a long tail."""
    ours: list[dict[str, float]] = []
    theirs: list[dict[str, float]] = []
    for _ in range(rounds):
        ours.append(run("benchmarks.generation", "ours"))
        theirs.append(run("benchmarks.generation", "hf"))
    return {
        "ours": ours,
        "hf": theirs,
        "speed_ratio": mean(ours, "tokens_per_s") / mean(theirs, "tokens_per_s"),
        "by_slots": {n: run("benchmarks.generation", "ours", "--sequences", str(n)) for n in SLOTS},
        "long_tail": {
            who: run("benchmarks.generation", who, "--sequences", "128", "--slots", "32", "--tail")
            for who in ("ours", "hf")
        },
    }


def ppo(rounds: int) -> dict[str, Any] | None:
    """prefine's updates and those of TRL 1.10 in turns; None where PREFINE_TRL_PPO names no folder with it."""
    if "PREFINE_TRL_PPO" not in os.environ:
        return None
    ours: list[dict[str, float]] = []
    theirs: list[dict[str, float]] = []
    for _ in range(rounds):
        ours.append(run("benchmarks.ppo", "ours"))
        theirs.append(run("benchmarks.ppo", "trl", "--updates", "1"))
    return {
        "ours": ours,
        "trl": theirs,
        "speed_ratio": mean(theirs, "seconds") / mean(ours, "seconds"),
        "memory_ratio": mean(theirs, "memory_gb") / mean(ours, "memory_gb"),
    }


def scaling(number: int) -> list[dict[str, float]]:
    """Seconds a token as a step grows to twice and four times the pairs."""
    return [
        run("benchmarks.ours", "dpo", "--pairs", str(number * k), "--batch-size", str(PAIRS_A_STEP * k))
        for k in (1, 2, 4)
    ]


def tables(results: dict[str, Any]) -> list[Table]:
    """What a person reads."""
    against = Table("work", "prefine", "TRL", "ratio", title=f"against TRL, {results['source']}")
    for stage in ("dpo", "sft", "reward"):
        r = results[stage]
        step, peer = mean(r["ours"], "seconds_a_step"), mean(r["trl"], "seconds_a_step")
        against.add_row(f"{stage}, s a step", f"{step:.2f}", f"{peer:.2f}", f"{r['speed_ratio']:.1f}x faster")
        if stage == "dpo":
            once = mean(r["ours"], "reference_seconds_a_step")
            against.add_row(
                "dpo, reference counted (one epoch)",
                f"{step + once:.2f}",
                f"{peer:.2f}",
                f"{r['speed_ratio_with_reference']:.1f}x faster",
            )
        memory = (mean(r["ours"], "memory_gb"), mean(r["trl"], "memory_gb"))
        against.add_row(f"{stage}, peak GB", f"{memory[0]:.2f}", f"{memory[1]:.2f}", f"1/{r['memory_ratio']:.1f}")
    r = results["score"]
    against.add_row(
        "scoring 128 pairs (against a padded loop), s",
        f"{mean(r['ours'], 'seconds'):.2f}",
        f"{mean(r['padded'], 'seconds'):.2f}",
        f"{r['speed_ratio']:.1f}x faster",
    )
    r = results["dpo"]
    against.add_row(
        "dpo, share of bf16 matmul peak",
        f"{r['share_of_bf16_peak']:.0%}",
        "",
        f"{mean(r['ours'], 'gflops'):.0f} of {mean(r['ours'], 'bf16_peak_gflops'):.0f} GFLOP/s",
    )
    r = results["generation"]
    against.add_row(
        "generation, 64 x 64 (against transformers), tokens/s",
        f"{mean(r['ours'], 'tokens_per_s'):.0f}",
        f"{mean(r['hf'], 'tokens_per_s'):.0f}",
        f"{r['speed_ratio']:.1f}x faster",
    )
    if results["ppo"] is not None:
        r = results["ppo"]
        for name, unit, ratio in (("seconds", "s an update", "speed_ratio"), ("memory_gb", "peak GB", "memory_ratio")):
            ours, theirs = mean(r["ours"], name), mean(r["trl"], name)
            against.add_row(f"ppo, {unit} (TRL 1.10)", f"{ours:.2f}", f"{theirs:.2f}", f"{r[ratio]:.1f}")
    grown = Table("pairs a step", "tokens a step", "s a step", "ms a token", title="cost against tokens")
    for k, row in zip((1, 2, 4), results["scaling"], strict=True):
        seconds, tokens = row["seconds_a_step"], row["tokens_a_step"]
        grown.add_row(str(PAIRS_A_STEP * k), f"{tokens:.0f}", f"{seconds:.2f}", f"{1e3 * seconds / tokens:.3f}")
    waits = Table("wait", "seconds", title="before anything happens")
    for name, seconds in results["waits"].items():
        waits.add_row(name, f"{seconds:.2f}")
    slots = Table("slots", "tokens/s", title="generation by slots")
    for count, row in results["generation"]["by_slots"].items():
        slots.add_row(str(count), f"{row['tokens_per_s']:.0f}")
    for who, row in results["generation"]["long_tail"].items():
        slots.add_row(f"128 in 32, long tail, {who}", f"{row['tokens_per_s']:.0f}")
    return [against, grown, slots, waits]


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
