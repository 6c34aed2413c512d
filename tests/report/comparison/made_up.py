"""A comparison's folder as an evaluation leaves it, made up: 40 prompts in five categories, every part filled."""

from __future__ import annotations

import math
import random
import statistics
from pathlib import Path
from typing import Any

from prefine.comparisons.length_control import LENGTH_CONTROL
from prefine.comparisons.result import (
    AnswerOf,
    AnswerRow,
    Comparison,
    Direction,
    Estimate,
    Finding,
    GateRule,
    Metric,
    RegressionGroup,
    Side,
    Verdict,
    Winner,
    WinRate,
)

PROMPTS = 40
JUDGE = "qwen2.5-72b-instruct"
_ASKED = {
    "delivery": (
        'My tracking has said "out for delivery" since 7 this morning. Is it coming today?',
        "Delivery times can vary depending on many factors. Please be patient.",
        "Probably not tonight: drivers stop at 8 pm. If it still says so by noon tomorrow, send me your order number.",
    ),
    "billing": (
        "I was charged twice for order HP-52107: $24 on Monday and $24 today.",
        "We apologize for the inconvenience. Your refund will arrive within 24 hours, guaranteed. We value you.",
        "Two charges for one box is wrong. One of them may be a hold; I've asked billing, and you'll hear by tomorrow.",
    ),
    "returns": (
        "Can I return a lamp if I've thrown the box away?",
        "Yes.",
        "Yes, within 30 days and unmarked. Any sturdy box will do; reply with the order number for a label.",
    ),
    "account": (
        "The password reset mail never arrives. Tried four times, checked spam.",
        "Please try again later.",
        "The newest mail cancels the older links. Wait 15 minutes, ask for one more, and use only that one.",
    ),
    "product": (
        "Does the mini espresso machine take ordinary-size pods?",
        "It is a great product that many customers love.",
        "No: it takes the small ones only. The larger model in the same line takes both sizes.",
    ),
}


def write_evaluation(folder: Path, **changed: Any) -> Path:
    """report.json and answers.jsonl; `changed` replaces fields of the comparison."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = answer_rows()
    found = comparison(rows).model_copy(update=changed)
    (folder / "report.json").write_text(found.model_dump_json(indent=2), encoding="utf-8")
    write_rows(folder, rows)
    return folder


def write_rows(folder: Path, rows: list[AnswerRow]) -> None:
    """answers.jsonl alone."""
    lines = "".join(f"{row.model_dump_json()}\n" for row in rows)
    (folder / "answers.jsonl").write_text(lines, encoding="utf-8")


def answer_rows() -> list[AnswerRow]:
    """Answers whose rewards rise and which get longer."""
    chance = random.Random(5)
    return [_row(number, chance) for number in range(PROMPTS)]


def _row(number: int, chance: random.Random) -> AnswerRow:
    category = list(_ASKED)[number % len(_ASKED)]
    asked, was, now = _ASKED[category]
    before = chance.gauss(-0.3, 1.0)
    after = before + chance.gauss(0.55, 0.9)
    if number == 7:
        now, after = "Thank you! " * 40, before - 2.5
    if number == 13:
        now = " "
    winner: Winner = "candidate" if after > before + 0.3 else "baseline" if after < before - 0.3 else "tie"
    turns = [{"role": "user", "content": f"{asked} (case {number + 1})"}]
    if number == 3:
        turns = [
            {"role": "system", "content": "You answer for a home goods shop."},
            {"role": "user", "content": "I can't log in."},
            {"role": "assistant", "content": "Have you tried the reset link under the form?"},
            *turns,
        ]
    return AnswerRow(
        id=f"{category}-{number + 1}",
        category=category,
        prompt=turns,
        reference="Any sturdy box will do." if category == "returns" else "",
        candidate=AnswerOf(
            text=now,
            tokens=round(58 + chance.gauss(0, 14)),
            ended=number not in (7, 21),
            degenerate={7: "looping", 13: "blank"}.get(number),
            reward=after,
            kl_per_token=abs(chance.gauss(0.21, 0.07)),
            entropy=abs(chance.gauss(1.1, 0.2)),
        ),
        baseline=AnswerOf(
            text=was,
            tokens=round(44 + chance.gauss(0, 16)),
            ended=number != 2,
            reward=before,
            kl_per_token=abs(chance.gauss(0.02, 0.01)),
            entropy=abs(chance.gauss(1.6, 0.25)),
        ),
        verdicts={JUDGE: winner},
    )


def _metric(
    name: str, title: str, unit: str, group: str, better: Direction, ends: tuple[float, ...], finding: Finding
) -> Metric:
    was, now, half = ends
    share = unit == "share"
    room = half / math.sqrt(2)

    def estimate(value: float) -> Estimate:
        low, high = value - room, value + room
        return Estimate(
            value=value, low=max(0, low) if share else low, high=min(1, high) if share else high, count=PROMPTS
        )

    change = Estimate(value=now - was, low=now - was - half, high=now - was + half, count=PROMPTS)
    p = min(1.0, 2 * (1 - statistics.NormalDist().cdf(abs(now - was) / (half / 1.96))))
    return Metric(
        name=name,
        title=title,
        unit=unit,
        group=group,
        better=better,
        candidate=estimate(now),
        baseline=estimate(was),
        change=change,
        p=p,
        p_adjusted=min(1.0, 3 * p) if better != "neither" else None,
        finding=finding,
        sentence=f"The {title} went from {was:.3g} to {now:.3g} (change {now - was:+.3g}, 95 % interval "
        f"{now - was - half:+.3g} to {now - was + half:+.3g}).",
    )


def _metrics() -> list[Metric]:
    same: Finding = "no difference shown"
    return [
        _metric("reward", "reward", "score", "reward", "higher", (-0.31, 0.27, 0.31), "better"),
        _metric("kl_per_token", "KL per token, k3", "nats", "divergence", "neither", (0.021, 0.214, 0.024), "differs"),
        _metric("entropy", "entropy", "nats", "divergence", "neither", (1.61, 1.12, 0.09), "differs"),
        _metric("length_tokens", "answer length", "tokens", "form", "neither", (44.2, 57.9, 5.1), "differs"),
        _metric("ended", "answers ended by themselves", "share", "form", "higher", (0.975, 0.95, 0.07), same),
        _metric("degenerate", "degenerate answers", "share", "form", "lower", (0.0, 0.05, 0.068), same),
        _metric("distinct_2", "distinct 2-grams", "share", "diversity", "higher", (0.61, 0.52, 0.05), "worse"),
        _metric("self_bleu", "self-BLEU", "score", "diversity", "lower", (14.2, 21.9, 4.0), "worse"),
        _metric(
            "preference_accuracy", "pairs ranked right", "share", "preference", "higher", (0.6, 0.72, 0.11), "better"
        ),
        _metric("perplexity", "perplexity of demonstrations", "", "reference", "lower", (8.42, 8.61, 0.31), same),
        _metric("rouge_l", "ROUGE-L", "share", "reference", "higher", (0.212, 0.207, 0.03), same),
        Metric(
            name="bleu",
            title="BLEU",
            unit="score",
            group="reference",
            better="higher",
            finding="not computed",
            sentence="",
            why_not="32 of 40 prompts have no reference answer.",
        ),
    ]


def _share(hits: float, count: int, half: float) -> Estimate:
    value = hits / count
    return Estimate(value=value, low=max(0.0, value - half), high=min(1.0, value + half), count=count)


def _group(
    category: str, title: str, size: int, passed: tuple[int, int], lost: int, finding: Finding
) -> RegressionGroup:
    was, now = passed
    change = (now - was) / size
    return RegressionGroup(
        category=category,
        title=title,
        candidate=_share(now, size, 0.14),
        baseline=_share(was, size, 0.13),
        change=Estimate(value=change, low=change - 0.13, high=change + 0.13, count=size),
        lost=lost,
        gained=now - was + lost,
        p=0.004 if finding == "worse" else 0.6,
        p_adjusted=0.03 if finding == "worse" else 1.0,
        finding=finding,
        sentence=f"{title}: {was} of {size} passed by the baseline, {now} by the candidate.",
        examples=[f"{category}-{number}" for number in range(1, min(lost, 4) + 1)],
    )


def comparison(rows: list[AnswerRow]) -> Comparison:
    """Better by the reward, with a planted regression in arithmetic and a gate that fails."""
    verdicts = [row.verdicts[JUDGE] for row in rows]
    wins, ties, losses = (verdicts.count(name) for name in ("candidate", "tie", "baseline"))
    half = _share(wins + ties / 2, PROMPTS, 0.15)
    return Comparison(
        prefine="0.1.0",
        made_at="2026-11-26T12:00:00+00:00",
        candidate=Side(name="runs/dpo", kind="run", identity="9f" * 16, facts={"stage": "dpo", "dtype": "float32"}),
        baseline=Side(name="runs/sft", kind="run", identity="3c" * 16, facts={"stage": "sft", "dtype": "float32"}),
        prompts={
            "source": "held_out.jsonl",
            "count": PROMPTS,
            "left_out": {"the prompt is blank": 2, "duplicate of another prompt": 1},
            "categories": {name: PROMPTS // len(_ASKED) for name in _ASKED},
        },
        sampling={"temperature": 0.7, "top_p": 1.0, "max_new_tokens": 96, "seed": 0, "samples": 1},
        verdict=Verdict(
            decision="better",
            decided_by="reward",
            sentence="The candidate’s answers have a higher reward: +0.58 on average "
            "(95 % interval +0.27 to +0.89, 40 prompts).",
            regressions=[
                "Arithmetic of the regression set: 31 of 40 items passed, 38 before; 8 passed only with the baseline.",
                "Distinct 2-grams fell from 61 % to 52 %: answers repeat each other more.",
            ],
            improvements=[
                "Reward: +0.58 (95 % interval +0.27 to +0.89).",
                "Held-out pairs ranked right: 72 %, 60 % before.",
            ],
            more_prompts=None,
        ),
        metrics=_metrics(),
        win_rates=[
            WinRate(
                judge=JUDGE,
                wins=wins,
                ties=ties,
                losses=losses,
                rate=half,
                decided=_share(wins, wins + losses, 0.16),
                length_controlled=_share(wins - 4 + ties / 2, PROMPTS, 0.17),
                length_control=LENGTH_CONTROL,
                consistency=_share(35, PROMPTS, 0.1),
                p=0.004,
                p_adjusted=0.016,
                finding="better",
                sentence=f"{JUDGE} preferred the candidate in {wins} of 40 prompts and the baseline in {losses}.",
                spent={"requests": 80, "prompt_tokens": 41_220, "completion_tokens": 1_930, "cost": 0.0312},
                failed={"no verdict in the reply": 1},
                warnings=["At equal length the win rate is 10 points lower: the judge may prefer longer answers."],
            ),
            WinRate(
                judge="people",
                wins=0,
                ties=0,
                losses=0,
                finding="not computed",
                sentence="No votes were found.",
                more_prompts=180,
                why_not="The file of votes has none on these prompts.",
            ),
        ],
        regression=[
            _group("instruction", "Instructions a program can check", 40, (29, 31), 2, "no difference shown"),
            _group("arithmetic", "Arithmetic", 40, (38, 31), 8, "worse"),
            _group("json", "Valid JSON", 20, (17, 17), 1, "no difference shown"),
            _group("facts", "Short facts", 30, (21, 22), 2, "no difference shown"),
            _group("refusal", "Refusals", 20, (12, 19), 0, "better"),
        ],
        benchmarks=[
            _metric(
                "arc_easy", "arc_easy, acc", "share", "lm-eval", "higher", (0.512, 0.506, 0.02), "no difference shown"
            )
        ],
        gate=[
            GateRule(rule="decision: better", value="better", passed=True, sentence="The decision is better."),
            GateRule(
                rule="regression.arithmetic.change ≥ -0.05",
                value="-0.175",
                passed=False,
                sentence="Arithmetic fell by 17.5 points, at most 5 are allowed.",
            ),
        ],
        warnings=["8 of 40 prompts have a reference answer: ROUGE is of those only."],
        not_computed={"bleu": "32 of 40 prompts have no reference answer.", "margin": "no reward model was given."},
        command=["prefine", "evaluate", "runs/dpo", "--against", "runs/sft", "--prompts", "held out.jsonl"],
        recipes={
            "candidate": {"training": {"learning_rate": 5e-5, "epochs": 2.0}, "dpo": {"beta": 0.1}},
            "baseline": {"training": {"learning_rate": 2e-4, "epochs": 2.0}},
        },
        seconds={"generation": 212.4, "divergence": 31.0, "judge": 64.2},
    )
