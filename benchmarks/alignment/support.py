"""The support-desk path: SFT, a reward model, DPO and PPO, each evaluated against the model that it was trained from.

The judge is a reward model of its own: trained from the base on a third of the prompts, of which the path sees none,
and never optimised. All seeds have the same judge.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.alignment.steps import evaluated, kept, require_settings, sha256_of, trained
from prefine.data.reading.source_names import source_names
from prefine.runs.atomic import write_text

BASE = "embedded:smollm2-135m"
PAIRS = "sample:support_desk/preferences"
PROMPTS = "sample:support_desk/prompts"
RECIPES = Path("prefine/recipes")
JUDGE_SEED = 100
# Of so many prompts one is the judge's.
JUDGE_EVERY = 3
# About four passes over the judge's pairs; the recipe's own number is for all pairs.
JUDGE_STEPS = 46
COMPARISONS = ("sft-against-base", "dpo-against-sft", "ppo-against-sft")


def run(folder: Path, seeds: Sequence[int], peer_seeds: Sequence[int], dtype: str) -> None:
    """Train the quickstart's runs with each seed, and evaluate them. There is no peer."""
    require_settings(
        folder,
        model=BASE,
        dtype=dtype,
        data=[sha256_of(_file(name)) for name in (PAIRS, PROMPTS)],
        recipes=[sha256_of(Path(_recipe(stage))) for stage in ("sft", "reward", "dpo", "ppo")],
        judge=[JUDGE_SEED, JUDGE_EVERY, JUDGE_STEPS],
    )
    own, judges = split(folder)
    judge = trained(
        "reward",
        _recipe("reward"),
        folder / "judge",
        f"model.name={BASE}",
        f"model.dtype={dtype}",
        f"data.train={judges}",
        f"training.seed={JUDGE_SEED}",
        "training.epochs=5",
        f"training.max_steps={JUDGE_STEPS}",
    )
    kept(folder / "judge-on-path.json", lambda: {"margins": margins_of(str(judge), own, dtype)})
    stopped = []
    for seed in seeds:
        try:
            _path(folder / f"seed-{seed}", own, judge, f"training.seed={seed}", f"model.dtype={dtype}")
        except subprocess.CalledProcessError as error:  # a guard, or a reward model that is not fit for PPO
            stopped.append(f"seed {seed}: {error}")
    if stopped:
        sys.exit("\n".join(stopped))


def _path(folder: Path, data: Path, judge: Path, *common: str) -> None:
    """The runs of one seed and their evaluations."""
    common = (*common, f"data.train={data}")
    sft = trained("sft", _recipe("sft"), folder / "sft", *common)
    reward = trained("reward", _recipe("reward"), folder / "reward", f"model.name={sft}", *common)
    dpo = trained("dpo", _recipe("dpo"), folder / "dpo", f"model.name={sft}", *common)
    ppo = trained("ppo", _recipe("ppo"), folder / "ppo", f"model.name={sft}", f"reward.name={reward}", *common)
    models = {"base": BASE, "sft": sft, "dpo": dpo, "ppo": ppo}
    for name in COMPARISONS:
        candidate, baseline = (models[each] for each in name.split("-against-"))
        found = evaluated(
            Path(candidate), str(baseline), folder / "evaluations" / name, "--prompts", PROMPTS, "--reward", str(judge)
        )
        print(f"{folder.name}, {name}: {found['verdict']['sentence']}", flush=True)


def margins_of(judge: str, data: Path, dtype: str) -> list[float]:
    """By pair: the judge's score of the better answer minus that of the other one."""
    import prefine

    rows = [json.loads(line) for line in data.read_text().splitlines()]
    asked = [{"prompt": row["prompt"], "response": row[answer]} for row in rows for answer in ("chosen", "rejected")]
    scores = [row["score"] for row in prefine.load(judge, dtype=dtype).score(asked)]  # type: ignore[arg-type]
    return [chosen - rejected for chosen, rejected in zip(scores[::2], scores[1::2], strict=True)]


def split(folder: Path) -> tuple[Path, Path]:
    """The shipped pairs in two files: those of the path, and those of the judge; no prompt is in both."""
    lines = _file(PAIRS).read_text().splitlines()
    prompts = list(dict.fromkeys(json.loads(line)["prompt"] for line in lines))
    judged = set(prompts[::JUDGE_EVERY])
    paths = folder / "pairs.jsonl", folder / "judge-pairs.jsonl"
    for path, wanted in zip(paths, (False, True), strict=True):
        rows = (line for line in lines if (json.loads(line)["prompt"] in judged) is wanted)
        write_text(path, "".join(f"{row}\n" for row in rows))
    return paths


def _file(name: str) -> Path:
    [path] = source_names(name)
    return Path(path)


def _recipe(stage: str) -> str:
    return str(RECIPES / f"quickstart-{stage}.yaml")
