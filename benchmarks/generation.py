"""Time new tokens a second on short prompts: python -m benchmarks.generation ours|hf [--sequences 64] [--tail].

All of an answer's tokens are written, prefill counted. `--tail` asks one sequence in eight for all of them and the
others for a quarter, the long-tailed lengths of real answers, where a batch waits for its longest.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

from benchmarks.work import peak_memory_gb, short_prompts, tell
from prefine.models.generate import Request, writer_for
from prefine.models.load import load_model
from prefine.models.sampling import Sampling
from prefine.recipe import ModelSection

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
        model = hf.model = AutoModelForCausalLM.from_pretrained(loaded.location.base, dtype=torch.bfloat16).eval()  # type: ignore[attr-defined]
    for first in range(0, len(prompts), slots):
        some = prompts[first : first + slots]
        batch = loaded.tokenizer.pad({"input_ids": some}, return_tensors="pt", padding_side="left")
        longest = max(wanted[first : first + slots])
        model.generate(**batch, max_new_tokens=longest, min_new_tokens=longest, do_sample=True, top_k=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("who", choices=["ours", "hf"])
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--slots", type=int, default=None)
    parser.add_argument("--tail", action="store_true")
    args = parser.parse_args()
    loaded = load_model(ModelSection(dtype="bfloat16"), None, trainable=False)
    prompts = [loaded.template.prompt_ids(prompt.prompt) for prompt in short_prompts(args.sequences)]
    wanted, slots = lengths(args.sequences, args.tail), args.slots or args.sequences
    write = {"ours": ours, "hf": hf}[args.who]
    write(loaded, prompts[:2], [2, 2], 2)  # what is made once is made
    began = time.perf_counter()
    write(loaded, prompts, wanted, slots)
    seconds = time.perf_counter() - began
    tell({"tokens_per_s": sum(wanted) / seconds, "seconds": seconds, "memory_gb": peak_memory_gb()})


if __name__ == "__main__":
    main()
