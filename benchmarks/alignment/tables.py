"""The tables of docs/results.md from what the experiments kept: python -m benchmarks.alignment.tables [--out FOLDER].

Only what is there is shown: seeds that did not run are missing from the tables.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.alignment import sentiment
from benchmarks.alignment.harmless import LEARNING_RATES, accuracy
from prefine.intervals import Mean, mean, mean_change

# Of the curves: the first update, the last, and some between.
_SHOWN = (1, 4, 8, 12, 16)


def _json(path: Path) -> Any:
    return json.loads(path.read_text())


def _row(*cells: object) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _head(*names: str) -> Iterator[str]:
    yield _row(*names)
    yield "|" + "---|" * len(names)


def _said(found: Mean | None, digits: int = 2, sign: str = "+") -> str:
    """A value with its 95 % interval."""
    if found is None:
        return ""
    number = f"{found.value:{sign}.{digits}f}"
    if found.interval is None:
        return number
    return f"{number} ({found.interval.low:{sign}.{digits}f} to {found.interval.high:{sign}.{digits}f})"


def support(folder: Path) -> Iterator[str]:
    """Each evaluation: the judge's win rate and change of score, the verdict, and what else changed."""
    yield from _head(
        "seed", "candidate", "against", "judge's win rate, %", "change of its score", "verdict", "also changed"
    )
    for path in sorted(folder.glob("seed-*/evaluations/*/report.json")):
        found = _json(path)
        candidate, baseline = path.parent.name.split("-against-")
        rates = [each["rate"] for each in found["win_rates"]]
        rewards = [each["change"] for each in found["metrics"] if each["name"] == "reward"]
        changed = [
            f"{each['title']} {each['finding']}"
            for each in (*found["metrics"], *found["regression"])
            if each["finding"] in ("better", "worse") and each.get("name") != "reward"
        ]
        yield _row(
            path.parts[-4].removeprefix("seed-"),
            candidate,
            baseline,
            *(_percent(rate) for rate in rates),
            *(_estimate(change) for change in rewards),
            found["verdict"]["decision"],
            ", ".join(changed),
        )


def _percent(figure: Mapping[str, float]) -> str:
    return f"{100 * figure['value']:.0f} ({100 * figure['low']:.0f} to {100 * figure['high']:.0f})"


def _estimate(figure: Mapping[str, float]) -> str:
    return f"{figure['value']:+.2f} ({figure['low']:+.2f} to {figure['high']:+.2f})"


def held_out_sentiment(folder: Path) -> Iterator[str]:
    """Held-out prompts: means of the base, and each trained model's change, paired by prompt."""
    base = _json(folder / "base.json")
    yield from _head("model", "seed", "reward (VADER)", "judge (AFINN a word)", "tokens")
    keys = ("reward", "judge", "tokens")
    yield _row("base", "", *(_said(mean(base[key]), sign="") for key in keys))
    for path in sorted(folder.glob("*/heldout.json")):
        name, _, seed = path.parent.name.rpartition("-")
        found = _json(path)
        changes = (mean_change([[each] for each in base[key]], [[each] for each in found[key]]) for key in keys)
        yield _row(name, seed, *(_said(change) for change in changes))


def curves_of_sentiment(folder: Path) -> Iterator[str]:
    """Means over seeds of some updates."""
    yield from _head("trainer", "figure", *(f"update {update}" for update in _SHOWN))
    for trainer, divergence in (("ours", "kl_sequence"), ("trl", "objective/kl")):
        runs = [_json(path) for path in sorted(folder.glob(f"{trainer}-*/training.json"))]
        if not runs:
            continue
        series = {
            "reward": [[update["reward"] for update in run["curve"]] for run in runs],
            "judge": [[update["judge"] for update in run["curve"]] for run in runs],
            "words": [[update["words"] for update in run["curve"]] for run in runs],
            "KL, nats an answer": [[row[divergence] for row in run["metrics"]] for run in runs],
        }
        for name, values in series.items():
            places = [place - 1 for place in _SHOWN if place <= sentiment.UPDATES]
            means = [statistics.fmean(run[place] for run in values) for place in places]
            yield _row(f"{trainer}, {len(runs)} seeds", name, *(f"{each:.2f}" for each in means))


def harmless(folder: Path) -> Iterator[str]:
    """Held-out accuracy of each trainer and seed, and their paired difference."""
    yield from _head("stage", "seed", "prefine", "TRL", "difference, points, paired", "tokens: prefine", "TRL")
    for stage in LEARNING_RATES:
        for path in sorted(folder.glob(f"{stage}-ours-*.json")):
            own, other = _json(path), path.with_name(path.name.replace("-ours-", "-trl-"))
            peer = _json(other) if other.is_file() else None
            yield _row(
                stage,
                path.stem.rpartition("-")[2],
                accuracy(own["margins"]),
                accuracy(peer["margins"]) if peer else "",
                _said(_difference(own["margins"], peer["margins"]), 1) if peer else "",
                own["tokens"],
                peer["tokens"] if peer else "",
            )


def _difference(own: Sequence[float], peer: Sequence[float]) -> Mean | None:
    """Ours minus the peer's share of pairs in the right order, in points."""
    return mean([100.0 * ((ours > 0) - (theirs > 0)) for ours, theirs in zip(own, peer, strict=True)])


TABLES = {
    "support": (support,),
    "sentiment": (held_out_sentiment, curves_of_sentiment),
    "harmless": (harmless,),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/alignment"))
    folder = parser.parse_args().out
    for part, tables in TABLES.items():
        for table in tables:
            if (folder / part).is_dir():
                print(f"\n{part}: {table.__doc__}\n")
                print(*table(folder / part), sep="\n")


if __name__ == "__main__":
    main()
