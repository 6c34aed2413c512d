"""A reward run as one whole model, for who scores with transformers alone; the file is proved to score alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prefine.atomic import atomic_write, json_bytes
from prefine.data.batch import TokenTree
from prefine.errors import CheckpointError, ModelError
from prefine.models.forward import standard_attention
from prefine.models.heads import SCORE, pad_apart
from prefine.models.reward import PackedReward, load_reward
from prefine.models.scoring import SCALE_FILE, Question, Scale
from prefine.recipe import ModelSection
from prefine.records import Message

# In standard deviations of the scores; a merge in fp32 moves them by rounding alone, one into bf16 by its three digits.
_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}
_PROBES = (
    ("What is the capital of France?", ("The capital of France is Paris.", "I don't know.", "")),
    ("My parcel is late. What now?", ("Send me the order number and I will ask the carrier today.", "Wait.")),
)


def merge_reward(name: str, folder: Path, dtype: str = "float32") -> float:
    """Merge a reward run's adapter into its base and save both with the head, in the ecosystem's own form.

    `AutoModelForSequenceClassification.from_pretrained(folder)` then gives the raw score as its one label; the bias to
    subtract is in reward.json. Several heads become one, their mean.

    Returns: how far the scores of the saved model, loaded by transformers alone, are from those of the run at most, in
        standard deviations of its held-out scores.

    Raises:
        ModelError: no reward model of prefine's; an unknown type.
        CheckpointError: the folder is taken or cannot be written, or the saved model scores otherwise.
    """
    if dtype not in _TOLERANCE:
        raise ModelError(f"--dtype: {dtype!r} is not known", f"Choose one of {', '.join(_TOLERANCE)}.")
    reward = load_reward(ModelSection(name=name, device="cpu", dtype="float32"))
    if not isinstance(reward, PackedReward) or reward.scale is None:
        raise ModelError(f"{name} is no reward run of prefine", "Name a run that prefine reward has trained.")
    trees = [tree for tree in (reward.tree(Question(_asked(q), answers)) for q, answers in _PROBES) if tree is not None]
    before = reward.raw(trees).mean(1)
    model = _merged(reward, getattr(torch, dtype))
    scale = Scale((sum(reward.scale.bias) / len(reward.scale.bias),), *_rest(reward.scale))
    with atomic_write(folder) as temporary:
        with standard_attention(reward.loaded.packed):
            model.save_pretrained(temporary)
        reward.tokenizer.save_pretrained(temporary)
        (temporary / SCALE_FILE).write_bytes(json_bytes(scale.as_json(), indent=2))
        apart = float((_by_transformers(temporary, trees) - before).abs().max()) / scale.std
        if not apart <= _TOLERANCE[dtype]:
            raise CheckpointError(
                f"{folder}: the merged model's scores are {apart:.2g} standard deviations from the run's",
                "Merge in float32; if it stays so, this architecture cannot be merged.",
            )
    return apart


def _asked(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


def _rest(scale: Scale) -> tuple[float, int, int]:
    return scale.std, scale.answers, scale.max_length_tokens


@torch.no_grad()
def _merged(reward: PackedReward, dtype: torch.dtype) -> Any:
    """The transformers model with the adapter's deltas in its weights and one head."""
    model: Any = reward.loaded.packed.model
    model = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    weight = getattr(model, SCORE).weight
    head = nn.Linear(weight.shape[1], 1, bias=False)
    head.weight.copy_(weight.mean(0, keepdim=True))
    setattr(model, SCORE, head)
    model.config.num_labels = 1
    pad_apart(model, reward.loaded.template)
    return model.to(dtype)


@torch.no_grad()
def _by_transformers(folder: Path, trees: list[TokenTree]) -> Tensor:
    """Scores (answers,) by transformers' own loading, padding and pooling, as any user of the folder gets them."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    rows = [[*tree.prompt, *answer] for tree in trees for answer in tree.answers]
    batch = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
    logits: Tensor = model(**batch).logits
    return logits[:, 0].float()
