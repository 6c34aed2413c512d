"""python -m benchmarks.alignment [support,sentiment,harmless] [--out FOLDER] [--seeds 0,1,2] [--dtype float32].

Hours on two cores. What is done is kept in the folder: a second call goes on where the first one stopped.

sentiment and harmless need PREFINE_DATA, the folder of harmless-base (hh-harmless-base.jsonl.gz), and sentiment needs
PREFINE_TRL_PPO, a folder with TRL 1.10, the last release with PPO: pip install --no-deps --target FOLDER trl==1.10.0.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.alignment import harmless, sentiment, support
from benchmarks.work import HH, add_dtype, dtype_name, source

PARTS = {"support": support.run, "sentiment": sentiment.run, "harmless": harmless.run}


def _seeds(text: str) -> list[int]:
    return [int(word) for word in text.split(",") if word]


def require_inputs(parts: Sequence[str]) -> None:
    """End the program where a part's input is missing, before hours of training."""
    has_pairs = source().endswith(HH)
    has_trl = (Path(os.environ.get("PREFINE_TRL_PPO", "")) / "trl").is_dir()
    inputs = (
        ("harmless", "PREFINE_DATA", has_pairs),
        ("sentiment", "PREFINE_DATA", has_pairs),
        ("sentiment", "PREFINE_TRL_PPO", has_trl),
    )
    for part, variable, found in inputs:
        if part in parts and not found:
            sys.exit(f"{part}: set {variable}; python -m benchmarks.alignment --help says to what.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="?", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/alignment"))
    parser.add_argument("--seeds", type=_seeds, default=[0, 1, 2])
    parser.add_argument(
        "--peer-seeds", type=_seeds, help="those of TRL, which takes most of the time; default: --seeds"
    )
    add_dtype(parser)
    args = parser.parse_args()
    named = args.parts.split(",")
    if unknown := [name for name in named if name not in PARTS]:
        parser.error(f"{', '.join(unknown)}: no such part; there are {', '.join(PARTS)}")
    require_inputs(named)
    for name in named:
        folder = args.out / name
        folder.mkdir(parents=True, exist_ok=True)
        peers = args.seeds if args.peer_seeds is None else args.peer_seeds
        PARTS[name](folder, args.seeds, peers, dtype_name(args.dtype))


if __name__ == "__main__":
    main()
