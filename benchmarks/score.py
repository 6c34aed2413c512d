"""Time scoring: python -m benchmarks.score packed|padded [--dtype float32].

The same reward model, as prefine and as transformers run it.

The padded loop is what scripts do: AutoModelForSequenceClassification, batches of 16 whole conversations in the
order of the file, padded to the longest of each.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import cast

import torch

from benchmarks.work import MAX_LENGTH_TOKENS, add_dtype, dtype_name, pairs, peak_memory_gb, tell
from prefine.models.loading.load import load_model, save_model
from prefine.models.loading.weights import SCALE_FILE
from prefine.models.scoring.packed_scorer import PackedReward, load_reward
from prefine.models.scoring.scorer import Question, RewardModel, ScoreScale
from prefine.recipe.sections import ModelSection

PAIRS = 128
_BATCH = 16


def save_reward_model(folder: Path, dtype: str) -> None:
    """A reward model with a fresh head: what it says does not matter here, only how long it takes."""
    torch.manual_seed(0)
    loaded = load_model(ModelSection(dtype=dtype), None, heads=1)
    scale = ScoreScale(bias=(0.0,), std=1.0, answers=2, max_length_tokens=MAX_LENGTH_TOKENS)
    save_model(loaded, folder, {SCALE_FILE: scale.as_json()})


def packed(reward: RewardModel, questions: list[Question]) -> tuple[list[float], float]:
    """Scores by prefine, and seconds."""
    list(reward.score(questions[:2]))
    began = time.perf_counter()
    scores = [score.score for found in reward.score(questions) if found for score in found]
    return scores, time.perf_counter() - began


@torch.no_grad()
def padded(folder: Path, rows: list[list[int]], dtype: str) -> tuple[list[float], float]:
    """Scores by transformers' own classifier, and seconds."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    model(torch.tensor([rows[0]]))
    scores: list[float] = []
    began = time.perf_counter()
    for first in range(0, len(rows), _BATCH):
        batch = tokenizer.pad({"input_ids": rows[first : first + _BATCH]}, return_tensors="pt")
        scores += model(**batch).logits[:, 0].tolist()
    return scores, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("how", choices=["packed", "padded"])
    parser.add_argument("--pairs", type=int, default=PAIRS)
    add_dtype(parser)
    args = parser.parse_args()
    dtype = dtype_name(args.dtype)
    questions = [Question(record.prompt, (record.chosen, record.rejected)) for record in pairs(args.pairs)]
    with tempfile.TemporaryDirectory() as out:
        folder = Path(out) / "model"
        save_reward_model(folder, dtype)
        reward = load_reward(ModelSection(name=str(folder), dtype=dtype))
        if args.how == "packed":
            scores, seconds = packed(reward, questions)
        else:
            trees = [tree for question in questions for tree in cast(PackedReward, reward).trees(question) or ()]
            scores, seconds = padded(
                folder, [[*tree.prompt, *answer] for tree in trees for answer in tree.answers], dtype
            )
    tell({"seconds": seconds, "answers": len(scores), "mean": sum(scores) / len(scores), "memory_gb": peak_memory_gb()})


if __name__ == "__main__":
    main()
