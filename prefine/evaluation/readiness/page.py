"""The readiness report as one HTML page, made from a readiness.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefine.evaluation.readiness.assess import Readiness
from prefine.formatting import INTERVAL, figure, moment, percent, percent_range, plural, whole
from prefine.intervals import Interval, median
from prefine.report.charts import Chart, Key
from prefine.report.page import render
from prefine.report.plots import Bars, histogram, reliability_chart, scatter_chart
from prefine.runs.atomic import storage_errors, write_json, write_text

JSON_NAME = "readiness.json"
PAGE_NAME = "readiness.html"
_MOST_SUSPECTS_SHOWN = 30
_SAYS = {
    "go": "Fit for PPO, as far as these figures can tell.",
    "caution": "Usable for PPO with care: read the reasons first.",
    "no-go": "Not fit for PPO: optimising it would lead away from what people want.",
}


def write_readiness(readiness: Readiness, folder: Path) -> Path:
    """Write readiness.json and readiness.html to a folder, which is created if missing; returns the page's path.

    Raises:
        CheckpointError: they cannot be written.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    held = readiness.as_json()
    write_json(folder / JSON_NAME, held)
    page = folder / PAGE_NAME
    write_text(page, render(build_context(json.loads(json.dumps(held))), "readiness.html.j2"))
    return page


def build_context(held: Mapping[str, Any]) -> dict[str, Any]:
    """All content of the page, by the template's names."""
    reasons = [finding for finding in held["findings"] if finding["level"] != "go"]
    return {
        "title": f"Readiness of {held['model']}",
        "verdict": held["verdict"],
        "says": _SAYS[held["verdict"]],
        "model": held["model"],
        "data": held["data"],
        "date": moment(held["assessed_at"]),
        "scope": held["scope"],
        "reasons": sorted(reasons, key=lambda finding: str(finding["level"]), reverse=True),
        "findings": held["findings"],
        "tiles": _tiles(held),
        "charts": [_scores_chart(held), _reliability(held), _lengths_chart(held)],
        "parts": _parts(held),
        "lengths": _length_rows(held),
        "spoilt": [
            [each["name"], percent(each["fooled"]["value"]), _range(each["fooled"]), _signed(each["mean_change"])]
            for each in held["spoilt"]
        ],
        "variances": [[each["name"], figure(each["deviations"])] for each in held["variances"]],
        "suspects": held["suspects"][:_MOST_SUSPECTS_SHOWN],
        "suspects_in_all": held["suspected"],
        "looked_at": plural(held["looked_at"], "pair"),
        "suspected": [percent(each["probability"], 1) for each in held["suspects"][:_MOST_SUSPECTS_SHOWN]],
        "too_long": plural(held["too_long"], "record") if held["too_long"] else "",
    }


def _tiles(held: Mapping[str, Any]) -> list[dict[str, str]]:
    accuracy, train = held["accuracy"], held["train_accuracy"]
    tiles = [
        {
            "label": "Held-out accuracy",
            "value": percent(accuracy["value"]),
            "note": f"{plural(accuracy['count'], 'pair')}, {INTERVAL} {_range(accuracy)}",
        }
    ]
    if train:
        tiles.append({"label": "Accuracy on training pairs", "value": percent(train["value"]), "note": _of(train)})
    if held["calibration"]:
        tiles.append(
            {
                "label": "Calibration error",
                "value": figure(held["calibration"]["error"], 2),
                "note": "0: accuracy equals confidence",
            }
        )
    tiles.append({"label": "Spread of scores", "value": figure(held["std"], 2), "note": "standard deviation, nats"})
    return tiles


def _of(share: Mapping[str, Any]) -> str:
    return f"of {plural(share['count'], 'pair')}"


def _range(share: Mapping[str, Any]) -> str:
    return percent_range(Interval(share["low"], share["high"])) if share["low"] is not None else ""


def _signed(value: float) -> str:
    return figure(value, 2, signed=True)


def _scores_chart(held: Mapping[str, Any]) -> Chart:
    chosen, rejected = ([pair[f"{side}_score"] for pair in held["pairs"]] for side in ("chosen", "rejected"))
    bars = [
        Bars(rejected, "rejected", median(rejected), filled=True),
        Bars(chosen, "chosen", median(chosen), filled=False),
    ]
    return Chart(
        "Scores of both answers",
        "held-out pairs; 0 is an average held-out answer of the training run",
        histogram("scores", "Scores of chosen and rejected answers", bars, xlabel="score, nats", ylabel="answers"),
        [
            Key("chosen", "line", f"preferred, median {figure(median(chosen), 2)}"),
            Key("rejected", "block", f"rejected, median {figure(median(rejected), 2)}"),
        ],
        "Dashed lines: medians. Accuracy depends on the differences within pairs.",
    )


def _reliability(held: Mapping[str, Any]) -> Chart:
    bins = held["calibration"]["bins"]
    points = [(b["confidence"], b["accuracy"]["value"], b["accuracy"]["low"], b["accuracy"]["high"]) for b in bins]
    counts = ", ".join(str(b["accuracy"]["count"]) for b in bins)
    return Chart(
        f"Calibration: error {figure(held['calibration']['error'], 2)}",
        "σ(|Δr|) against accuracy",
        reliability_chart("calibration", "Accuracy against confidence", points),
        [Key("after", "dot", "accuracy"), Key("muted", "dotted", "accuracy = confidence")],
        f"Bars: {INTERVAL}s. Pairs from left to right: {counts}.",
    )


def _lengths_chart(held: Mapping[str, Any]) -> Chart:
    pairs, found = held["pairs"], held["length"]["correlation"]
    told = f"rank correlation {figure(found[0], 2, signed=True)}" if found else "too few answers for a correlation"
    note = f"{INTERVAL} {figure(found[1]['low'], 2)} to {figure(found[1]['high'], 2)}." if found else ""
    chosen, rejected = (
        [(float(pair[f"{side}_tokens"]), pair[f"{side}_score"]) for pair in pairs] for side in ("chosen", "rejected")
    )
    return Chart(
        "Score and length",
        told,
        scatter_chart(
            "lengths",
            "Scores by answer length",
            {"rejected": rejected, "chosen": chosen},
            xlabel="tokens of the answer",
            ylabel="score, nats",
        ),
        [Key("chosen", "dot", "preferred"), Key("rejected", "diamond", "rejected")],
        note,
    )


@dataclass(frozen=True)
class PartRow:
    """Accuracy within a part of the pairs, drawn on a scale."""

    name: str
    count: str
    share: float
    low: float
    high: float
    text: str


def _parts(held: Mapping[str, Any]) -> list[tuple[str, str, list[PartRow]]]:
    told = (
        ("by_group", "By category", "as the data names them"),
        ("by_data_margin", "By the data's own margin", "how much better people rated the preferred answer"),
        ("by_score_margin", "By the model's margin", "|Δr|: accuracy should grow with it"),
    )
    return [(title, note, [_part(each) for each in held[key]]) for key, title, note in told if held[key]]


def _part(part: Mapping[str, Any]) -> PartRow:
    share = part["accuracy"]
    value = share["value"]
    return PartRow(part["name"], whole(share["count"]), value, share["low"], share["high"], percent(value))


def _length_rows(held: Mapping[str, Any]) -> list[list[str]]:
    length = held["length"]
    rows = [
        ("people preferred the longer answer", length["people"]),
        ("the model prefers the longer answer", length["model"]),
        ("right where the longer one was preferred", length["chosen_longer"]),
        ("right where the shorter one was preferred", length["chosen_shorter"]),
    ]
    shares = [[name, whole(s["count"]), percent(s["value"]), _range(s)] for name, s in rows if s]
    within = length["pair_correlation"]
    if within:
        bounds = f"{figure(within[1]['low'], 2)} to {figure(within[1]['high'], 2)}"
        shares.append(
            ["rank correlation of the differences within pairs", "", figure(within[0], 2, signed=True), bounds]
        )
    return shares
