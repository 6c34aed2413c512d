"""What prefine and its peers are timed on: real preference pairs, else the shipped ones; and the number type."""

from __future__ import annotations

import argparse
import json
import os
import resource
from pathlib import Path

from prefine.data.reading.quarantine import Quarantine
from prefine.data.reading.source_names import source_names
from prefine.data.records.stream import read_records
from prefine.recipe.dpo import DpoRecipe
from prefine.recipe.reward import RewardRecipe
from prefine.recipe.sections import ModelSection
from prefine.recipe.sft import SftRecipe
from prefine.recipe.stage import StageRecipe
from prefine.records import Preference, Prompt
from prefine.runs.cache import cache_directory

HH = "hh-harmless-base.jsonl.gz"
PAIRS_A_STEP = 4
MAX_LENGTH_TOKENS = 512
LORA_RANK = 16
# The tokens of four padded prompts and answers, which TRL's PPO computes at once.
PPO_MICROBATCH_TOKENS = 1024
# A reward model is never trained without rows to judge it by; these are evaluated before and after the timed steps.
HELDOUT_PAIRS = 4


def source() -> str:
    """The HH pairs in the folder that PREFINE_DATA names, else the shipped sample."""
    folder = os.environ.get("PREFINE_DATA")
    path = Path(folder) / HH if folder else None
    return str(path) if path is not None and path.is_file() else "sample:support_desk/preferences"


def pairs(limit: int) -> list[Preference]:
    """The first `limit` valid pairs."""
    with Quarantine() as quarantine:
        stream = read_records(source_names(source()), Preference, quarantine=quarantine)
        return [record for record, _ in zip(stream, range(limit), strict=False)]


def write_pairs(path: Path, records: list[Preference]) -> None:
    """As JSON lines that prefine reads."""
    path.write_text(
        "".join(record.model_dump_json(include={"prompt", "chosen", "rejected"}) + "\n" for record in records)
    )


def add_dtype(parser: argparse.ArgumentParser) -> None:
    """`--dtype`: the type of matrix products, the same for prefine and its peers."""
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], help="default: the one that prefine doctor chooses on this machine"
    )


def dtype_name(asked: str | None) -> str:
    """The type asked for, else the one that `prefine doctor` chooses here."""
    import torch

    from prefine.models.loading.device import choose_dtype

    if asked is not None:
        return asked
    chosen, _ = choose_dtype("auto", torch.device("cpu"))
    return str(chosen).removeprefix("torch.")


def recipe(
    stage: str, data: Path, run: Path, steps: int, dtype: str, batch_size: int = PAIRS_A_STEP, **training: int
) -> StageRecipe:
    """The recipe both benchmarks and peers follow: LoRA r=16 on all linear layers, nothing held out of `data`.

    `dtype` is "float32" or "bfloat16"; `training` are further settings of that section.
    """
    kind: type[StageRecipe] = {"dpo": DpoRecipe, "sft": SftRecipe, "reward": RewardRecipe}[stage]
    values: dict[str, dict[str, object] | str] = {
        "run": str(run),
        "model": {"dtype": dtype},
        "lora": {"r": LORA_RANK, "alpha": 2.0 * LORA_RANK},
        "data": {"train": str(data), "heldout_fraction": 0.0, "max_length_tokens": MAX_LENGTH_TOKENS},
        "training": {"batch_size": batch_size, "max_steps": steps, "epochs": 100.0, "learning_rate": 5e-5, **training},
    }
    if stage == "reward":
        heldout = data.with_name("heldout.jsonl")
        write_pairs(heldout, pairs(500)[-HELDOUT_PAIRS:])
        values["data"] = {**values["data"], "heldout": str(heldout)}  # type: ignore[dict-item]
        values["training"] = {**values["training"], "evaluate_every_steps": None}  # type: ignore[dict-item]
    else:
        values["report"] = {"samples": 0}
    return kind.model_validate(values)


def fresh_cache(folder: Path) -> Path:
    """A cache in `folder` that holds the converted model but no reference log-probabilities of earlier runs."""
    cache = folder / "cache"
    cache.mkdir()
    (cache / "models").symlink_to(cache_directory() / "models")
    return cache


def peak_memory_gb() -> float:
    """Largest resident memory of this process so far, GB (10^9 bytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def tell(result: dict[str, object]) -> None:
    """Print one result as the last line, for the process that started this one."""
    print("RESULT " + json.dumps(result))


def short_prompts(count: int, most_tokens: int = 160) -> list[Prompt]:
    """The first prompts of at most so many tokens of the embedded model."""
    from prefine.models.loading.load import load_tokenizer
    from prefine.models.loading.location import locate_model

    section = ModelSection()
    template = load_tokenizer(locate_model(section.name), section)
    found = (Prompt(prompt=pair.prompt) for pair in pairs(20 * count + 1000))
    return [prompt for prompt in found if len(template.prompt_ids(prompt.prompt)) <= most_tokens][:count]
