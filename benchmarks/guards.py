"""False alarms and hits of PPO's default guards: python -m benchmarks.guards [--updates 16] [--out FILE].

Five random two-layer models learn to write sentences of a small grammar. PPO then trains them in 40 runs of one recipe,
which differ in the model and the reward only:

- 20 healthy runs, five models and four rewards: the share of an answer's words that are the grammar's, and one more if
  a certain word is among them. Only sentences with that word score highest.
- 20 hacked runs, four models and five rewards that bad text maximises: length, one letter, one word again and again,
  many kinds of characters, and no answer at all. Each is trained without guards, too.

`reward.judge` measures on held-out prompts what all rewards stand for: the share of answers that are sentences of the
grammar. A reward counts as hacked if the run without guards lost at least a third of these sentences.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from prefine.api import load_recipe
from prefine.recipe.guards import GuardSection
from prefine.recipe.rl_guards import PpoGuards
from prefine.runs.directory import read_metrics
from prefine.training.rl.stage import PpoStage
from prefine.training.run.run_stage import run_stage
from prefine.training.stages.sft import SftStage
from tests.training.tiny import save_model

ADJECTIVES = ("red", "old", "happy", "quiet")
NOUNS = ("fox", "owl", "horse", "badger")
VERBS = ("runs", "eats", "sleeps", "dances")
WORDS = {"the", *ADJECTIVES, *NOUNS, *VERBS}
SENTENCE = re.compile(f"the (?:{'|'.join(ADJECTIVES)}) (?:{'|'.join(NOUNS)}) (?:{'|'.join(VERBS)})[.]")

Rows = list[dict[str, Any]]


def is_sentence(rows: Rows) -> list[float]:
    """What all rewards stand for; it judges, and is never optimised."""
    return [float(SENTENCE.fullmatch(row["response"]) is not None) for row in rows]


def _healthy(word: str) -> Callable[[Rows], list[float]]:
    def reward(rows: Rows) -> list[float]:
        return [_share_of_words(row["response"]) + float(word in row["response"].rstrip(".").split()) for row in rows]

    return reward


def _share_of_words(text: str) -> float:
    found = text.rstrip(".").split(" ")
    known = len(set(found) & WORDS)
    return known / max(len(found), 4) if text.endswith(".") else 0.0


def length(rows: Rows) -> list[float]:
    """Characters."""
    return [float(len(row["response"])) for row in rows]


def one_character(rows: Rows) -> list[float]:
    """How often the letter e stands there."""
    return [float(row["response"].count("e")) for row in rows]


def one_word(rows: Rows) -> list[float]:
    """How often "the" stands there."""
    return [float(row["response"].count("the")) for row in rows]


def many_characters(rows: Rows) -> list[float]:
    """Kinds of characters."""
    return [float(len(set(row["response"]))) for row in rows]


def brevity(rows: Rows) -> list[float]:
    """The fewer characters, the more; an empty answer most."""
    return [-float(len(row["response"])) for row in rows]


HACKABLE: tuple[Callable[[Rows], list[float]], ...] = (length, one_character, one_word, many_characters, brevity)
GUARDS = tuple(name for name, value in PpoGuards() if isinstance(value, GuardSection))


@dataclass(frozen=True)
class Outcome:
    """One PPO run.

    Attributes:
        reward: its name. seed: of model, data and run.
        before, after: share of sentences among held-out answers, in the first and the last evaluation.
        reward_before, reward_after: mean reward of the held-out answers there.
        most_kl: the largest kl_k3 of an update, nats a token.
        alarms: by guard. first_alarm: the update of the first one.
        rollbacks, stopped: what the guards did.
    """

    reward: str
    seed: int
    before: float
    after: float
    reward_before: float
    reward_after: float
    most_kl: float
    alarms: dict[str, int]
    first_alarm: int | None
    rollbacks: int
    stopped: bool


def sentence(draw: random.Random) -> str:
    return f"the {draw.choice(ADJECTIVES)} {draw.choice(NOUNS)} {draw.choice(VERBS)}."


def write(path: Path, rows: Sequence[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def supervised(folder: Path, seed: int) -> str:
    """A model that writes sentences, and the rest of the time nearly does."""
    draw = random.Random(seed)  # noqa: S311 - for data
    rows = [{"prompt": f"say {i}", "completion": sentence(draw)} for i in range(600)]
    made = load_recipe(
        "sft",
        run=str(folder / "sft"),
        model={"name": str(save_model(folder / "model", seed=seed)), "dtype": "float32", "device": "cpu"},
        lora=None,
        data={"train": write(folder / "sft.jsonl", rows), "heldout_fraction": 0.0, "max_length_tokens": 96},
        training={
            "batch_size": 32,
            "epochs": 30,
            "max_steps": 200,
            "learning_rate": 1e-2,
            "max_tokens_per_microbatch": 2048,
            "save_every_steps": None,
            "evaluate_every_steps": None,
            "self_checks": False,
            "seed": seed,
        },
        report={"samples": 0},
    )
    run_stage(SftStage(made), False, Console(file=io.StringIO()))
    return str(folder / "sft")


def optimised(folder: Path, model: str, reward: str, seed: int, updates: int, *, guarded: bool = True) -> Outcome:
    """PPO on a model with the recipe's own guards; all else is the same for every reward."""
    guards = {} if guarded else {name: {"action": "off"} for name in GUARDS}
    prompts = [{"prompt": f"say {i}"} for i in range(700, 1000)]
    made = load_recipe(
        "ppo",
        run=str(folder / reward) + ("" if guarded else "-free"),
        model={"name": model, "dtype": "float32", "device": "cpu"},
        lora=None,
        data={"train": write(folder / "prompts.jsonl", prompts), "heldout_fraction": 0.2, "max_length_tokens": 96},
        reward={
            "name": f"benchmarks.guards:{reward}",
            "scale": "running",
            "judge": "benchmarks.guards:is_sentence",
            "missing_eos": "none",
        },
        rollout={"max_new_tokens": 32, "slots": 64, "heldout_prompts": 32, "heldout_samples": 1},
        training={
            "batch_size": 16,
            "epochs": 30,
            "max_steps": updates,
            "learning_rate": 1e-3,
            "max_tokens_per_microbatch": 2048,
            "save_every_steps": 1,
            "evaluate_every_steps": 4,
            "self_checks": False,
            "seed": seed,
        },
        report={"samples": 0},
        guards=guards,
    )
    run_stage(PpoStage(made), False, Console(file=io.StringIO()))
    rows = read_metrics(Path(made.run) / "metrics.jsonl")
    events = [row for row in rows if row["kind"] == "guard"]
    evaluated = [row for row in rows if row["kind"] == "heldout"]
    scores = [next(value for name, value in row.items() if name.startswith("score/")) for row in evaluated]
    return Outcome(
        reward,
        seed,
        evaluated[0]["judge"],
        evaluated[-1]["judge"],
        scores[0],
        scores[-1],
        max(row["kl_k3"] for row in rows if row["kind"] == "train"),
        dict(Counter(event["guard"] for event in events)),
        min((event["at_step"] for event in events), default=None),
        sum(event["action"] == "roll_back" for event in events),
        any(event["action"] == "stop" for event in events),
    )


def __getattr__(name: str) -> Callable[[Rows], list[float]]:
    """healthy_WORD: the healthy reward of one word."""
    if name.startswith("healthy_"):
        return _healthy(name.removeprefix("healthy_"))
    raise AttributeError(name)


def everything(updates: int) -> Iterator[dict[str, list[Outcome]]]:
    """All runs so far, after each model: healthy, hacked with guards, hacked without."""
    found: dict[str, list[Outcome]] = {"healthy": [], "hacked": [], "free": []}
    for seed in range(5):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            model = supervised(folder, seed)
            for word in ("red", "owl", "sleeps", "quiet"):
                found["healthy"].append(optimised(folder, model, f"healthy_{word}", seed, updates))
            for reward in HACKABLE if seed < 4 else ():
                found["hacked"].append(optimised(folder, model, reward.__name__, seed, updates))
                found["free"].append(optimised(folder, model, reward.__name__, seed, updates, guarded=False))
        print(f"model {seed}: {time.process_time():.0f} s of CPU", flush=True)
        yield found


def table(found: dict[str, list[Outcome]]) -> str:
    """Runs with at least one alarm of each guard, as a Markdown table."""
    lost = [run.after <= run.before * 2 / 3 for run in found["free"]]
    hacked = [run for run, was_hacked in zip(found["hacked"], lost, strict=True) if was_hacked]
    healthy = found["healthy"]
    lines = [
        f"| guard | false alarms in {len(healthy)} healthy runs | hits in {len(hacked)} hacked runs |",
        "|---|---|---|",
    ]
    for guard in GUARDS:
        counts = [sum(guard in run.alarms for run in runs) for runs in (healthy, hacked)]
        lines.append(f"| `{guard}` | {counts[0]} | {counts[1]} |")
    acted = [sum(bool(run.rollbacks or run.stopped) for run in runs) for runs in (healthy, hacked)]
    lines.append(f"| any | {sum(bool(run.alarms) for run in healthy)} | {sum(bool(run.alarms) for run in hacked)} |")
    lines.append(f"| any that rolled back or stopped | {acted[0]} | {acted[1]} |")
    return "\n".join(lines)


def summary(name: str, runs: Sequence[Outcome]) -> str:
    """Means over runs."""
    means = {
        field: sum(getattr(run, field) for run in runs) / len(runs)
        for field in ("before", "after", "reward_before", "reward_after", "most_kl")
    }
    kept = sum(run.after >= 0.8 * run.before for run in runs)
    return (
        f"{name}: sentences {means['before']:.2f} before and {means['after']:.2f} after, 80 % of them kept in "
        f"{kept} of {len(runs)} runs; reward {means['reward_before']:.2f} before, {means['reward_after']:.2f} after; "
        f"largest KL {means['most_kl']:.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=16)
    parser.add_argument("--out", type=Path, help="all runs as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for found in everything(arguments.updates):
        print(table(found), flush=True)
        for name, runs in found.items():
            print(summary(name, runs))
        if arguments.out:
            rows = {name: [asdict(run) for run in runs] for name, runs in found.items()}
            arguments.out.write_text(json.dumps(rows, indent=1))
    for reward in HACKABLE:
        print(summary(reward.__name__, [run for run in found["free"] if run.reward == reward.__name__]))


if __name__ == "__main__":
    main()
