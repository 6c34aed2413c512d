"""What a user waits for before anything happens: help, reading, the first step."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.work import fresh_cache, pairs, write_pairs
from prefine.data.reading.quarantine import Quarantine
from prefine.data.records.stream import read_records
from prefine.records import Preference
from prefine.runs.directory import read_metrics

_ROWS = 100_000
_TIMEOUT_S = 120.0


def help_seconds() -> float:
    """Wall time of `prefine --help`, best of three."""
    return min(_timed([sys.executable, "-m", "prefine", "--help"]) for _ in range(3))


def reading_seconds() -> float:
    """Wall time of reading, validating and de-duplicating 100,000 distinct pairs of about 1 kB."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.jsonl"
        answer = "a plausible sentence of an answer that goes on for a while " * 8
        with path.open("w") as file:
            for number in range(_ROWS):
                file.write(
                    f'{{"prompt": "question {number}", "chosen": "{answer}{number}", "rejected": "{answer}no"}}\n'
                )
        begin = time.perf_counter()
        with Quarantine() as quarantine:
            read = sum(1 for _ in read_records(str(path), Preference, quarantine=quarantine))
        seconds = time.perf_counter() - begin
    if read != _ROWS:
        raise RuntimeError(f"read {read} of {_ROWS} rows")
    return seconds


def first_step_seconds(stage: str, dtype: str) -> float:
    """From the start of the process to the end of the first step on 64 pairs, embedded model already converted.

    For DPO the reference pass over all 64 pairs comes before it.
    """
    with tempfile.TemporaryDirectory() as folder:
        data, run = Path(folder) / "pairs.jsonl", Path(folder) / "run"
        write_pairs(data, pairs(64))
        recipe = Path(folder) / "recipe.yaml"
        recipe.write_text(
            f"run: {run}\nmodel: {{dtype: {dtype}}}\n"
            f"data: {{train: {data}, max_length_tokens: 512, heldout_fraction: 0.0}}\n"
            "training: {batch_size: 4, max_steps: 2, evaluate_every_steps: null}\nreport: {samples: 0}\n"
        )
        begin = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "prefine", stage, str(recipe)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PREFINE_CACHE": str(fresh_cache(Path(folder)))},
        )
        try:
            while time.perf_counter() - begin < _TIMEOUT_S and process.poll() is None:
                metrics = run / "metrics.jsonl"
                if metrics.exists() and any(row["kind"] == "train" for row in read_metrics(metrics)):
                    return time.perf_counter() - begin
                time.sleep(0.05)
        finally:
            process.kill()
            process.wait()
    raise RuntimeError("the run did not reach its first step")


def _timed(command: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - begin
