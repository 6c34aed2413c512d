"""Time what users of one server wait for each other's prompts, and for their own.

python -m benchmarks.prompts [--prefix 1000] [--dtype float32]

- first_token_s: from a request to its first token, for a prompt of `--prefix` tokens and some more that nobody has
  computed; first_token_again_s: for another one with the same beginning. Medians.
- gap_s: the longest time between two tokens of eight sequences while a prompt of `--prefix` tokens comes in between;
  gap_whole_s: where it is computed in one step. step_s: the median time between tokens without it; step_beside_s: with
  the long sequence beside them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

from benchmarks.work import add_dtype, dtype_name, tell
from prefine.generation.engine import writer_for
from prefine.generation.sampling import Sampling
from prefine.generation.writer import Request, Writer
from prefine.models.forward.fused import packed_weights
from prefine.models.loading.load import load_model
from prefine.recipe.sections import ModelSection

_REPEATS = 3
_RUNNING = 8
_PREFILL_TOKENS = 256


def prompt(tokens: int, seed: int) -> list[int]:
    """Token ids that no two seeds have in common."""
    return [1000 + (seed * 7919 + place * 31) % 20_000 for place in range(tokens)]


def first_token_s(writer: Writer, ids: list[int]) -> float:
    """Until a request's first token."""
    began = time.perf_counter()
    heard: list[float] = []
    number = writer.add(
        Request(ids, Sampling(2, temperature=0), frozenset(), lambda _: heard.append(time.perf_counter()))
    )
    while not heard:
        writer.step()
    writer.cancel(number)
    while writer.busy:
        writer.step()
    return heard[0] - began


def reuse(loaded: Any, tokens: int) -> dict[str, float]:
    """With nothing kept, and with the beginning kept."""
    writer = writer_for(
        loaded.packed, loaded.tokenizer, 4, prefix_tokens=20 * tokens, kept=packed_weights(loaded.packed)
    )
    first_token_s(writer, prompt(64, 0))  # weights are laid out once
    new, again = [], []
    for seed in range(1, _REPEATS + 1):
        beginning = prompt(tokens, seed)
        new.append(first_token_s(writer, [*beginning, *prompt(20, 100 + seed)]))
        again.append(first_token_s(writer, [*beginning, *prompt(20, 200 + seed)]))
    found = {"first_token_s": statistics.median(new), "first_token_again_s": statistics.median(again)}
    return found | {"sooner": found["first_token_s"] / found["first_token_again_s"]}


def gaps(loaded: Any, tokens: int, prefill_tokens: int | None) -> tuple[float, float, float]:
    """Longest time between tokens while a long prompt comes in; median times before it and beside it."""
    writer = writer_for(
        loaded.packed, loaded.tokenizer, _RUNNING + 1, prefill_tokens=prefill_tokens, kept=packed_weights(loaded.packed)
    )
    for seed in range(_RUNNING):
        writer.add(Request(prompt(50, seed), Sampling(1000, seed=seed), frozenset()))
    heard: list[float] = []
    number = None
    times: list[float] = []
    while len(heard) < 10:
        began = time.perf_counter()
        writer.step()
        times.append(time.perf_counter() - began)
        if len(times) == 12:
            listen = lambda _: heard.append(time.perf_counter())  # noqa: E731
            number = writer.add(Request(prompt(tokens, 99), Sampling(20), frozenset(), listen))
    if number is None:
        raise RuntimeError("the long prompt never came")
    writer.clear()
    return max(times[12:]), statistics.median(times[2:12]), statistics.median(times[-8:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--prefix", type=int, default=1000)
    add_dtype(parser)
    args = parser.parse_args()
    loaded = load_model(ModelSection(dtype=dtype_name(args.dtype)), None, trainable=False)
    gap, step, beside = gaps(loaded, args.prefix, _PREFILL_TOKENS)
    whole, *_ = gaps(loaded, args.prefix, None)
    waits = {"gap_s": gap, "gap_whole_s": whole, "step_s": step, "step_beside_s": beside}
    tell(reuse(loaded, args.prefix) | waits)


if __name__ == "__main__":
    main()
