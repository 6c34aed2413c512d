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
from benchmarks.alignment import support as support_path
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


def _of_support(folder: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Comparison, seed and report of each evaluation, by comparison."""
    paths = sorted(folder.glob("seed-*/evaluations/*/report.json"))
    for comparison in support_path.COMPARISONS:
        for path in paths:
            if path.parent.name == comparison:
                yield comparison.replace("-", " "), path.parts[-4].removeprefix("seed-"), _json(path)


def support(folder: Path) -> Iterator[str]:
    """Each evaluation: the judge's win rate, also at equal length; the change of its score and of the length; KL of
    both models to the base.
    """
    yield from _head(
        "comparison",
        "seed",
        "win rate, %",
        "at equal length, %",
        "change of the score",
        "of the length, tokens",
        "KL a token: baseline, candidate",
        "verdict",
    )
    for comparison, seed, found in _of_support(folder):
        [rate] = found["win_rates"]
        metrics = {each["name"]: each for each in found["metrics"]}
        divergence = metrics.get("kl_per_token", {})
        yield _row(
            comparison,
            seed,
            _percent(rate["rate"]),
            _percent(rate["length_controlled"]),
            _estimate(metrics.get("reward"), 2),
            _estimate(metrics.get("length_tokens"), 0),
            ", ".join(_value(divergence.get(side), 3) for side in ("baseline", "candidate")),
            found["verdict"]["decision"],
        )


def changes_of_support(folder: Path) -> Iterator[str]:
    """What else each evaluation found better or worse, corrected for several comparisons."""
    yield from _head("comparison", "seed", "better", "worse")
    for comparison, seed, found in _of_support(folder):
        names: dict[str, list[str]] = {"better": [], "worse": []}
        for each in (*found["metrics"], *found["regression"]):
            if each["finding"] in names and not each.get("name", "").startswith("reward"):
                names[each["finding"]].append(each["title"])
        yield _row(comparison, seed, *(", ".join(each) or "nothing" for each in names.values()))


def judge_of_support(folder: Path) -> Iterator[str]:
    """The judge on pairs that it never saw: those that the path trains on."""
    yield from _head("pairs", "right, share")
    found = _json(folder / "judge-on-path.json")
    yield _row(len(found["margins"]), accuracy(found["margins"]))


def _percent(figure: Mapping[str, float] | None) -> str:
    if figure is None:
        return "not computed"
    return f"{100 * figure['value']:.0f} ({100 * figure['low']:.0f} to {100 * figure['high']:.0f})"


def _value(figure: Mapping[str, float] | None, digits: int) -> str:
    return "not computed" if figure is None else f"{figure['value']:.{digits}f}"


def _estimate(metric: Mapping[str, Any] | None, digits: int) -> str:
    figure = metric and metric["change"]
    if not figure:
        return "not computed"
    low, high = (f"{figure[end]:+.{digits}f}" for end in ("low", "high"))
    return f"{figure['value']:+.{digits}f} ({low} to {high})"


def held_out_sentiment(folder: Path) -> Iterator[str]:
    """Held-out prompts: means of the base, each trained model's change from it, and ours minus TRL's; by prompt."""
    base = _json(folder / "base.json")
    yield from _head(
        "model", "seed", "reward (VADER)", "judge (AFINN a word)", "tokens", "degenerate, share", "distinct word pairs"
    )
    keys = ("reward", "judge", "tokens", "degenerate", "distinct_2")
    yield _row("base", "", *(_said(mean(base[key]), sign="") for key in keys))
    for path in sorted(folder.glob("*/heldout.json")):
        name, _, seed = path.parent.name.rpartition("-")
        found = _json(path)
        changes = (mean_change([[each] for each in base[key]], [[each] for each in found[key]]) for key in keys)
        yield _row(name, seed, *(_said(change) for change in changes))
    for path in sorted(folder.glob("ours-*/heldout.json")):
        other = path.parent.with_name(path.parent.name.replace("ours", "trl")) / path.name
        if other.is_file():
            own, peer = _json(path), _json(other)
            changes = (mean_change([[each] for each in peer[key]], [[each] for each in own[key]]) for key in keys)
            yield _row("ours minus trl", path.parent.name.rpartition("-")[2], *(_said(change) for change in changes))


def curves_of_sentiment(folder: Path) -> Iterator[str]:
    """Means over seeds of some updates, with the lowest and highest."""
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
            yield _row(f"{trainer}, seeds: {len(runs)}", name, *(_spread([run[at] for run in values]) for at in places))


def _spread(values: Sequence[float]) -> str:
    """Mean, and the lowest and highest of several runs."""
    between = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{between}"


def harmless(folder: Path) -> Iterator[str]:
    """Held-out accuracy of each trainer and seed, and their paired difference."""
    yield from _head("stage", "seed", "prefine", "TRL", "difference, points, paired", "tokens read: prefine", "TRL")
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
    "support": (judge_of_support, support, changes_of_support),
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
