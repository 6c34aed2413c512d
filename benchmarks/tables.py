"""The tables that `python -m benchmarks` prints."""

from __future__ import annotations

import statistics
from typing import Any

from rich.table import Table

from benchmarks.work import PAIRS_A_STEP


def mean(results: list[dict[str, float]], name: str) -> float:
    """Mean over rounds."""
    return statistics.fmean(result[name] for result in results)


def tables(results: dict[str, Any]) -> list[Table]:
    """What a person reads."""
    found = [_against_peers(results), _products(results), _by_slots(results), _by_tokens(results), _waits(results)]
    return found if results["ppo"] is None else [*found, _phases(results)]


def _against_peers(results: dict[str, Any]) -> Table:
    table = Table(
        "work", "prefine", "peer", "ratio", title=f"against peers (TRL where none is named), {results['source']}"
    )
    for stage in ("dpo", "sft", "reward"):
        r = results[stage]
        step, peer = mean(r["ours"], "seconds_a_step"), mean(r["trl"], "seconds_a_step")
        table.add_row(f"{stage}, s a step", f"{step:.2f}", f"{peer:.2f}", f"{r['speed_ratio']:.1f}x faster")
        if stage == "dpo":
            once = step + mean(r["ours"], "reference_seconds_a_step")
            ratio = f"{r['speed_ratio_with_reference']:.1f}x faster"
            table.add_row("dpo, reference counted (one epoch)", f"{once:.2f}", f"{peer:.2f}", ratio)
        memory = (mean(r["ours"], "memory_gb"), mean(r["trl"], "memory_gb"))
        table.add_row(f"{stage}, peak GB", f"{memory[0]:.2f}", f"{memory[1]:.2f}", f"1/{r['memory_ratio']:.1f}")
    r = results["score"]
    seconds = mean(r["ours"], "seconds"), mean(r["padded"], "seconds")
    ratio = f"{r['speed_ratio']:.1f}x faster"
    table.add_row("scoring 128 pairs (a padded loop), s", f"{seconds[0]:.2f}", f"{seconds[1]:.2f}", ratio)
    r = results["generation"]
    for who, theirs in r["peers"].items():
        rates = mean(r["ours"], "tokens_per_s"), mean(theirs, "tokens_per_s")
        ratio = f"{rates[0] / rates[1]:.1f}x faster"
        table.add_row(f"generation, 64 x 64 ({who}), tokens/s", f"{rates[0]:.0f}", f"{rates[1]:.0f}", ratio)
    tail = {who: row["tokens_per_s"] for who, row in r["long_tail"].items()}
    ratio = f"{tail['ours'] / tail['hf']:.1f}x faster"
    table.add_row("generation, 128 in 32, long tail (hf), tokens/s", f"{tail['ours']:.0f}", f"{tail['hf']:.0f}", ratio)
    if (r := results["ppo"]) is not None:
        seconds, memory = ((mean(r["ours"], name), mean(r["trl"], name)) for name in ("seconds", "memory_gb"))
        ratio = f"{r['speed_ratio']:.1f}x faster"
        table.add_row("ppo (TRL 1.10), s an update", f"{seconds[0]:.2f}", f"{seconds[1]:.2f}", ratio)
        table.add_row("ppo, peak GB", f"{memory[0]:.2f}", f"{memory[1]:.2f}", f"1/{r['memory_ratio']:.1f}")
        dpo = r["dpo"]["memory_gb"]
        table.add_row("ppo, peak GB (our DPO, same budget)", f"{memory[0]:.2f}", f"{dpo:.2f}", f"{memory[0] / dpo:.2f}")
    return table


def _phases(results: dict[str, Any]) -> Table:
    table = Table("phase", "seconds", "share", title="where a PPO update's time goes")
    rounds = results["ppo"]["ours"]
    for phase in ("generate", "score", "measure", "train"):
        seconds = mean(rounds, f"seconds_{phase}")
        table.add_row(phase, f"{seconds:.2f}", f"{seconds / mean(rounds, 'seconds'):.0%}")
    return table


def _products(results: dict[str, Any]) -> Table:
    table = Table("work", "share", title="what part is products of matrices")
    rounds = results["dpo"]["ours"]
    rates = mean(rounds, "gflops"), mean(rounds, "bf16_peak_gflops")
    table.add_row(f"dpo: {rates[0]:.0f} of {rates[1]:.0f} GFLOP/s of bf16 products", f"{rates[0] / rates[1]:.0%}")
    for kind, share in results["generation"]["shares"].items():
        table.add_row(f"generation, time in {kind}", f"{share:.0%}")
    return table


def _by_tokens(results: dict[str, Any]) -> Table:
    table = Table("pairs a step", "tokens a step", "s a step", "ms a token", title="cost against tokens")
    for k, row in zip((1, 2, 4), results["scaling"], strict=True):
        seconds, tokens = row["seconds_a_step"], row["tokens_a_step"]
        table.add_row(str(PAIRS_A_STEP * k), f"{tokens:.0f}", f"{seconds:.2f}", f"{1e3 * seconds / tokens:.3f}")
    return table


def _by_slots(results: dict[str, Any]) -> Table:
    table = Table("slots", "tokens/s", title="generation by slots")
    for count, row in results["generation"]["by_slots"].items():
        table.add_row(str(count), f"{row['tokens_per_s']:.0f}")
    return table


def _waits(results: dict[str, Any]) -> Table:
    table = Table("wait", "seconds", title="before anything happens")
    for name, seconds in results["waits"].items():
        table.add_row(name, f"{seconds:.2f}")
    return table
