"""python -m benchmarks.alignment [support,sentiment,harmless] [--out FOLDER] [--seeds 0,1,2] [--dtype float32].

Hours on two cores. What is done is kept in the folder: a second call goes on where the first one stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.alignment import harmless, sentiment, support
from benchmarks.work import add_dtype, dtype_name

PARTS = {"support": support.run, "sentiment": sentiment.run, "harmless": harmless.run}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="?", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/alignment"))
    parser.add_argument("--seeds", type=lambda text: [int(word) for word in text.split(",")], default=[0, 1, 2])
    add_dtype(parser)
    args = parser.parse_args()
    named = args.parts.split(",")
    if unknown := [name for name in named if name not in PARTS]:
        parser.error(f"{', '.join(unknown)}: no such part; there are {', '.join(PARTS)}")
    for name in named:
        folder = args.out / name
        folder.mkdir(parents=True, exist_ok=True)
        PARTS[name](folder, args.seeds, dtype_name(args.dtype))


if __name__ == "__main__":
    main()
