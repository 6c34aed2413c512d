"""Run directories as a real run leaves them, made up: 32 held-out pairs, 90 steps, eight samples."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

STEPS = 90
PAIRS = 32

_SAMPLES = [
    (
        "delivery",
        'My tracking has said "out for delivery" since 7 this morning and it\'s now 9 pm. Is it coming today?',
        "I'm sorry to hear that. Delivery times can vary depending on many factors. Please be patient and check the "
        "tracking link for updates. If you have any other questions, feel free to ask!",
        "Probably not tonight: drivers stop at 8 pm, and an undelivered parcel goes back to the depot and out again "
        'the next morning. If the page still says "out for delivery" by noon tomorrow, send me your order number '
        "and I'll ask the depot to look for it.",
    ),
    (
        "billing",
        "I was charged twice for order HP-52107: $24 on Monday and $24 today. I only bought one box.",
        "We apologize for the inconvenience. Your refund will arrive within 24 hours, guaranteed. We value your "
        "business and will make sure that this never happens again to you or to anyone else. We are always here for "
        "you, and we want you to know that your satisfaction is our number one priority, today and every day, and "
        "that we will do whatever it takes to make things right, including",
        "Two charges for one box is wrong, and I can see why you'd want it fixed today. One of them may be a hold "
        "that drops off by itself; I've asked billing to check. You'll have an answer by tomorrow evening, and if "
        "it was a second charge the $24 goes back to the same card in 3 to 5 working days.",
    ),
    (
        "returns",
        "Can I return a lamp if I've thrown the box away?",
        "Yes.",
        "Yes, as long as it's within 30 days and the lamp is unmarked. Any sturdy box will do: wrap the shade apart "
        "from the base. Reply with the order number and I'll send the label.",
    ),
    (
        "account",
        "The password reset mail never arrives. Tried four times, checked spam.",
        "Please try again later.",
        "After several tries the newest mail cancels the older links, and our mail server spaces them out. Wait 15 "
        "minutes, ask for one more, and use only that. If nothing has come by then, tell me which address you use "
        "and I'll look whether the mail was refused.",
    ),
    (
        "product",
        "Does the mini espresso machine take the ordinary-size pods?",
        "The mini espresso machine is a great product that many customers love. It makes delicious espresso at home.",
        "The mini espresso machine is a great product. It makes espresso at home and takes pods.",
    ),
    (
        "cancellation",
        "Cancel my subscription please. I've asked twice now.",
        "I understand your frustration. Why do you want to cancel? We have many great offers for loyal customers.",
        "You shouldn't have had to ask again. I've set it to end on the 14th, the last day you've paid for; nothing "
        "more will be charged. You'll get a confirmation by mail within the hour. If it isn't there, reply here.",
    ),
    (
        "damage",
        "One of the six glasses came broken. I don't want to send the other five back!",
        "You must return the full set for a refund.",
        "Keep the five. Send me a photo of the broken one and the order number, and I'll send a single glass; if "
        "that colour is gone, I'll refund a sixth of the price.",
    ),
    (
        "complaint",
        "Third late order in a row. Honestly, why should I stay with you?",
        "We are the best store and we promise that all your orders will always be on time from now on.",
        "Three in a row is a pattern, and I can't promise that the fourth will be on time. What I can do: refund the "
        "shipping on all three today, and move you to the other carrier we use in your area. Shall I?",
    ),
]


@pytest.fixture
def dpo_run(tmp_path: Path) -> Path:
    return write_dpo_run(tmp_path / "dpo")


@pytest.fixture
def sft_run(tmp_path: Path) -> Path:
    return write_sft_run(tmp_path / "sft")


@pytest.fixture(scope="session")
def new_dpo_run() -> Callable[[Path], Path]:
    return write_dpo_run


def write_dpo_run(path: Path) -> Path:
    """A DPO run whose chosen answers fall a little."""
    chance = random.Random(7)
    path.mkdir(parents=True, exist_ok=True)
    pairs = [_pair(number, chance) for number in range(PAIRS)]
    accuracy = sum(pair["after_margin"] > 0 for pair in pairs) / PAIRS
    margin = sum(pair["after_margin"] for pair in pairs) / PAIRS
    chosen, rejected = (sum(pair[f"{side}_shift"] for pair in pairs) / PAIRS for side in ("chosen", "rejected"))
    before = _figures(math.log(2), 0.5, 0.0, -112.31, -118.94, 17 / PAIRS)
    after = _figures(0.5412, accuracy, margin, -112.31 + chosen, -118.94 + rejected, 21 / PAIRS)
    _write_json(
        path / "evaluation.json",
        {
            "heldout": {"count": PAIRS, "before": before, "after": after, "pairs": pairs},
            "generation": {
                "before": {"mean_tokens": 32.25, "median_tokens": 25.5, "ended": 0.875},
                "after": {"mean_tokens": 51.5, "median_tokens": 52, "ended": 1.0},
            },
        },
    )
    _write_lines(path / "metrics.jsonl", _dpo_metrics(chance, before, after))
    _write_lines(path / "samples.jsonl", [_sample(number) for number in range(len(_SAMPLES))])
    _write_json(path / "manifest.json", manifest("dpo"))
    return path


def write_sft_run(path: Path) -> Path:
    """An SFT run, without pairs."""
    chance = random.Random(3)
    path.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for step in range(STEPS + 1):
        loss = 1.9 + 0.7 * math.exp(-step / 25)
        if step:
            rows.append(
                {
                    "kind": "train",
                    "step": step,
                    "loss": loss + chance.gauss(0, 0.12),
                    "grad_norm": 0.8 + abs(chance.gauss(0, 0.3)),
                    "learning_rate": _rate(step, 2e-4),
                    "tokens": 940,
                    "tokens_per_s": 610 + chance.gauss(0, 20),
                    "peak_memory_gb": 2.31,
                }
            )
        if step % 15 == 0:
            rows.append({"kind": "heldout", "step": step, "loss": loss + 0.05, "perplexity": math.exp(loss + 0.05)})
    held_out = [row for row in rows if row["kind"] == "heldout"]
    _write_lines(path / "metrics.jsonl", rows)
    figures = [{key: row[key] for key in ("loss", "perplexity")} for row in (held_out[0], held_out[-1])]
    _write_json(path / "evaluation.json", {"heldout": {"count": 36, "before": figures[0], "after": figures[1]}})
    _write_lines(path / "samples.jsonl", [_sample(number) for number in range(4)])
    _write_json(path / "manifest.json", manifest("sft"))
    return path


def manifest(stage: str) -> dict[str, Any]:
    """A manifest with every key that the report knows."""
    checks = [
        {"name": "first loss is ln 2", "value": 0.6931, "rule": "0.6931 ± 0.001", "passed": True},
        {"name": "first margin", "value": 0.0, "rule": "0 ± 0.001", "passed": True},
        {"name": "every row has a supervised end of turn", "value": "288 of 288", "rule": "all", "passed": True},
        {"name": "at most one BOS", "value": 1, "rule": "≤ 1", "passed": True},
        {"name": "prompts shared by train and held-out", "value": 0, "rule": "0", "passed": True},
    ]
    return {
        "stage": stage,
        "status": "finished",
        "started_at": "2025-11-22T21:02:11+00:00",
        "finished_at": "2025-11-22T21:08:55+00:00",
        "seconds": 404.2,
        "seed": 0,
        "command": ["prefine", stage, f"recipes/{stage}.yaml", "--set", "data.train=my pairs.jsonl"],
        "git_commit": "4f1c2d9e8a7b6c5d4e3f2a1b0c9d8e7f6a5b4c3d",
        "versions": {"prefine": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "peft": "0.18.1"},
        "device": {"type": "cpu", "name": "a 2-core machine", "dtype": "bfloat16"},
        "model": {"name": "embedded:smollm2-135m", "parameters": 134_515_008, "trainable_parameters": 4_884_480},
        "recipe": {
            "run": f"runs/{stage}",
            "model": {"name": "embedded:smollm2-135m", "dtype": "auto"},
            "training": {"learning_rate": 5e-5, "epochs": 2.0, "batch_size": 8},
            "dpo": {"loss": "sigmoid", "beta": 0.1},
        },
        "data": {
            "train": {
                "files": [{"path": "my pairs.jsonl", "sha256": "9f" * 32}],
                "rows_in": 300,
                "kept": 291,
                "quarantined": 9,
                "duplicates": 3,
                "dropped_too_long": 0,
                "leaks_removed": 0,
                "rows": 288,
                "reasons": {"chosen and rejected are the same text": 5, "chosen is blank": 4},
            },
            "heldout": {
                "files": [{"path": "my pairs.jsonl", "sha256": "9f" * 32}],
                "rows_in": 32,
                "kept": 32,
                "quarantined": 0,
                "duplicates": 0,
                "dropped_too_long": 0,
                "leaks_removed": 0,
                "rows": 32,
            },
        },
        "self_checks": checks,
        "warnings": ["9 rows were set aside; see quarantine.jsonl."],
    }


def _pair(number: int, chance: random.Random) -> dict[str, Any]:
    chosen, rejected = chance.gauss(-1.4, 4.5), chance.gauss(-6, 6)
    return {
        "id": f"pair-{number}",
        "before_margin": 0.0,
        "after_margin": 0.1 * (chosen - rejected),
        "chosen_shift": chosen,
        "rejected_shift": rejected,
        "chosen_tokens": chance.randint(30, 90),
        "rejected_tokens": chance.randint(25, 90),
    }


def _figures(
    loss: float, accuracy: float, margin: float, chosen: float, rejected: float, ranked: float
) -> dict[str, float]:
    return {
        "loss": loss,
        "accuracy": accuracy,
        "margin": margin,
        "logp_chosen": chosen,
        "logp_rejected": rejected,
        "policy_accuracy": ranked,
    }


def _dpo_metrics(chance: random.Random, before: dict[str, float], after: dict[str, float]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for step in range(STEPS + 1):
        done = 1 - math.exp(-step / 30)
        now = {key: before[key] + (after[key] - before[key]) * done / (1 - math.exp(-STEPS / 30)) for key in before}
        if step:
            rows.append(
                {
                    "kind": "train",
                    "step": step,
                    "epoch": step / 36,
                    "loss": now["loss"] * 0.93 + chance.gauss(0, 0.05),
                    "grad_norm": 2 + chance.random(),
                    "learning_rate": _rate(step, 5e-5),
                    "tokens": 1180,
                    "tokens_per_s": 402 + chance.gauss(0, 12),
                    "peak_memory_gb": 2.87,
                    "accuracy": min(1, max(0, round(8 * (0.5 + 0.4 * done + chance.gauss(0, 0.12))) / 8)),
                    "margin": now["margin"] * 1.25 + chance.gauss(0, 0.12),
                    "logp_chosen": -110 + chance.gauss(0, 9),
                    "logp_rejected": -121 + chance.gauss(0, 9),
                }
            )
        if step % 15 == 0:
            shown = before if step == 0 else after if step == STEPS else now
            accuracy = round(shown["accuracy"] * PAIRS) / PAIRS
            rows.append({"kind": "heldout", "step": step, **{**shown, "accuracy": accuracy}})
    return rows


def _rate(step: int, peak: float) -> float:
    return peak * min(step / 9, 0.5 + 0.5 * math.cos(math.pi * step / STEPS))


def _sample(number: int) -> dict[str, Any]:
    category, prompt, before, after = _SAMPLES[number]
    turns = [{"role": "user", "content": prompt}]
    if number == 3:
        turns = [
            {"role": "system", "content": "You answer for a home goods shop."},
            {"role": "user", "content": "I can't log in."},
            {"role": "assistant", "content": "Have you tried the reset link under the form?"},
            *turns,
        ]
    row = {
        "id": f"{category}-p{number + 1}",
        "category": category,
        "prompt": turns,
        "before": before,
        "after": after,
        "before_tokens": len(before) // 4 + 1,
        "after_tokens": len(after) // 4 + 1,
        "before_ended": number != 1,
        "after_ended": True,
    }
    return {**row, "reference": "Yes. Any sturdy box will do."} if number == 2 else row


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
