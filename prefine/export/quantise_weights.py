"""Runs auto-round in a process of its own: `python -m prefine.export.quantise_weights JOB.json`; see quantized.py."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def quantise_weights(job: dict[str, Any]) -> None:
    """Write a folder with 4-bit weights.

    Args:
        job: `folder` (a transformers model), `out`, `format` (auto_gptq or auto_awq), `symmetric`, `group_size`,
            `algorithms` (auto-round's names, its own if empty), `iterations` (of its own algorithm; 0: it searches for
            the scales alone), `device`, `half` (compute in 16 bits, else in float32), `seed`, `threads`, and
            `tokens`, a safetensors file with `rows` (rows, tokens) int64 to calibrate on.
    """
    import torch
    from safetensors.torch import load_file

    torch.set_num_threads(job["threads"])
    rows = load_file(job["tokens"])["rows"]
    batches = [{"input_ids": row[None], "attention_mask": torch.ones_like(row)[None]} for row in rows]
    auto_round: Any = importlib.import_module("auto_round")
    rounder = auto_round.AutoRound(
        job["folder"],
        scheme="W4A16",
        sym=job["symmetric"],
        group_size=job["group_size"],
        **({"alg_configs": job["algorithms"]} if job["algorithms"] else {"iters": job["iterations"]}),
        nsamples=len(rows),
        seqlen=rows.shape[1],
        batch_size=min(8, len(rows)),
        dataset=batches,
        amp=job["half"],
        seed=job["seed"],
        device_map=job["device"],
        enable_torch_compile=False,
    )
    rounder.quantize_and_save(job["out"], format=job["format"])


def main(arguments: Sequence[str]) -> None:
    """Do what a job says."""
    job = json.loads(Path(arguments[0]).read_text("utf-8"))
    os.makedirs(job["out"], exist_ok=True)  # noqa: PTH103 - auto-round takes a string
    quantise_weights(job)


if __name__ == "__main__":
    main(sys.argv[1:])
