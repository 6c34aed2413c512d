"""The tables that `python -m benchmarks` prints."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from rich.table import Table

from benchmarks.coverage import coverage_table


def mean(results: list[dict[str, float]], name: str) -> float:
    """Mean over rounds."""
    return statistics.fmean(result[name] for result in results)


def tables(results: dict[str, Any]) -> list[Table]:
    """What a person reads: a table for each kind of measurement that `results` has."""
    kinds = (_machine, _against_peers, _phases, _products, _by_slots, _by_tokens, _serving, _waits, _coverage)
    return [table for table in (kind(results) for kind in kinds) if table.row_count]


def _coverage(results: dict[str, Any]) -> Table:
    return coverage_table(results.get("coverage", {}))


def _machine(results: dict[str, Any]) -> Table:
    machine = results["machine"]
    quick = ", a quick look: figures mean nothing" if results["quick"] else ""
    table = Table("machine", "", title=f"{results['when']}{quick}")
    table.add_row("processor", machine["name"])
    table.add_row("cores, threads", f"{machine['cores']}, {machine['threads']}")
    table.add_row("instruction sets", ", ".join(machine["instructions"]))
    for dtype, rate in machine["matmul_gflops"].items():
        table.add_row(f"matmul peak, {dtype}", f"{rate:.0f} GFLOP/s")
    table.add_row("type of both sides", results["dtype"])
    table.add_row("pairs", results["source"])
    return table


def _against_peers(results: dict[str, Any]) -> Table:
    machine = results["machine"]
    facts = f"{results['dtype']} on {machine['name']} ({', '.join(machine['instructions'])})"
    table = Table("work", "prefine", "peer", "ratio", title=f"against peers (TRL where none is named), {facts}")
    for row in (*_stages(results), *_scoring(results), *_generation(results), *_ppo(results)):
        table.add_row(*row)
    return table


def _row(work: str, ours: float, peer: float, digits: int = 2) -> tuple[str, str, str, str]:
    return work, f"{ours:.{digits}f}", f"{peer:.{digits}f}", f"{peer / ours:.1f}x faster"


def _memory(work: str, ours: float, peer: float) -> tuple[str, str, str, str]:
    return work, f"{ours:.2f}", f"{peer:.2f}", f"1/{peer / ours:.1f}"


def _stages(results: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for stage in ("dpo", "sft", "reward"):
        if (r := results.get(stage)) is None:
            continue
        step, peer = mean(r["ours"], "seconds_a_step"), mean(r["trl"], "seconds_a_step")
        yield _row(f"{stage}, s a step", step, peer)
        if stage == "dpo":
            once = step + mean(r["ours"], "reference_seconds_a_step")
            yield _row("dpo, reference counted (one epoch)", once, peer)
        yield _memory(f"{stage}, peak GB", mean(r["ours"], "memory_gb"), mean(r["trl"], "memory_gb"))


def _scoring(results: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    if r := results.get("score"):
        answers = mean(r["ours"], "answers")
        seconds = mean(r["ours"], "seconds"), mean(r["padded"], "seconds")
        yield _row(f"scoring {answers:.0f} answers (a padded loop), s", *seconds)


def _generation(results: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    if (r := results.get("generation")) is None:
        return
    for who, theirs in r["peers"].items():
        rates = mean(r["ours"], "tokens_per_s"), mean(theirs, "tokens_per_s")
        yield _rate(f"generation, {r['sequences']} sequences of 64 ({who}), tokens/s", *rates)
    tail = {who: row["tokens_per_s"] for who, row in r["long_tail"].items()}
    sequences, slots = r["tail"]
    yield _rate(f"generation, {sequences} in {slots}, long tail (hf), tokens/s", tail["ours"], tail["hf"])


def _rate(work: str, ours: float, peer: float) -> tuple[str, str, str, str]:
    return work, f"{ours:.0f}", f"{peer:.0f}", f"{ours / peer:.1f}x faster"


def _ppo(results: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    if r := results.get("ppo"):
        yield _row("ppo (TRL 1.10), s an update", mean(r["ours"], "seconds"), mean(r["trl"], "seconds"))
        ours, dpo = mean(r["ours"], "memory_gb"), r["dpo"]["memory_gb"]
        yield _memory("ppo, peak GB", ours, mean(r["trl"], "memory_gb"))
        yield "ppo, peak GB (our DPO, same budget)", f"{ours:.2f}", f"{dpo:.2f}", f"{ours / dpo:.2f}"


def _phases(results: dict[str, Any]) -> Table:
    table = Table("phase", "seconds", "share", title="where a PPO update's time goes")
    if r := results.get("ppo"):
        for phase in ("generate", "score", "measure", "train"):
            seconds = mean(r["ours"], f"seconds_{phase}")
            table.add_row(phase, f"{seconds:.2f}", f"{seconds / mean(r['ours'], 'seconds'):.0%}")
    return table


def _products(results: dict[str, Any]) -> Table:
    table = Table("work", "share", title="what part is products of matrices")
    for stage in ("dpo", "sft", "reward"):
        if r := results.get(stage):
            rates = mean(r["ours"], "gflops"), mean(r["ours"], "peak_gflops")
            work = f"{stage}: {rates[0]:.0f} of {rates[1]:.0f} GFLOP/s of {results['dtype']} products"
            table.add_row(work, f"{rates[0] / rates[1]:.0%}")
    if r := results.get("generation"):
        for kind, share in r["shares"].items():
            table.add_row(f"generation, time in {kind}", f"{share:.0%}")
    return table


def _by_tokens(results: dict[str, Any]) -> Table:
    table = Table("pairs a step", "tokens a step", "s a step", "ms a token", title="cost against tokens")
    for pairs, row in results.get("scaling", {}).items():
        seconds, tokens = row["seconds_a_step"], row["tokens_a_step"]
        table.add_row(str(pairs), f"{tokens:.0f}", f"{seconds:.2f}", f"{1e3 * seconds / tokens:.3f}")
    return table


def _by_slots(results: dict[str, Any]) -> Table:
    table = Table("slots", "tokens/s", title="generation by slots")
    for count, row in (results.get("generation") or {"by_slots": {}})["by_slots"].items():
        table.add_row(str(count), f"{row['tokens_per_s']:.0f}")
    return table


def _serving(results: dict[str, Any]) -> Table:
    r = results.get("serving") or {"requests": 0, "clients": (), "servers": {}}
    waits = [f"{what}, {count} clients" for count in r["clients"] for what in ("first token", "between tokens")]
    title = f"servers: {r['requests']} requests of 64 tokens at once; waits in seconds, median"
    table = Table("server", "tokens/s", *waits, "long prefix, first and again", title=title)
    for who, found in r["servers"].items():
        row = [f"{mean(found, 'tokens_per_s'):.0f}"]
        if who != "bare":
            for count in r["clients"]:
                row += [f"{mean(found, f'{name}_s_{count}'):.2f}" for name in ("first_token", "between_tokens")]
            row.append(f"{mean(found, 'prefix_first_s'):.2f}, {mean(found, 'prefix_second_s'):.2f}")
        table.add_row(who, *row)
    return table


def _waits(results: dict[str, Any]) -> Table:
    table = Table("wait", "seconds", title="before anything happens")
    for name, seconds in results.get("waits", {}).items():
        table.add_row(name, f"{seconds:.2f}")
    return table
