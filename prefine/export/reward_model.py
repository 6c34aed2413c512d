"""A reward run as one whole model, for who scores with transformers alone; the file is proved to score alike."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prefine.data.tokens.trees import TokenTree
from prefine.errors import CheckpointError, ModelError, about
from prefine.models.forward.packed import standard_attention
from prefine.models.loading.card import Base, Story, code, describe_result
from prefine.models.loading.heads import SCORE, ensure_distinct_pad_token
from prefine.models.loading.load import load_model
from prefine.models.loading.location import portable_path
from prefine.models.loading.quiet import known_noise_off
from prefine.models.loading.weights import SCALE_FILE
from prefine.models.scoring.packed_scorer import PackedReward, load_reward
from prefine.models.scoring.scorer import Question
from prefine.recipe.sections import named_model
from prefine.records import Message
from prefine.runs.atomic import atomic_write, json_bytes

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
    if folder.exists():
        raise CheckpointError(f"{folder} is there already", "Name a folder that is not.")
    if not folder.parent.is_dir():
        raise CheckpointError(f"{folder}: there is no folder {folder.parent}", "Create it first.")
    with about(None):
        section = named_model(name, device="cpu", dtype="float32")
        reward = load_reward(section)
    if not isinstance(reward, PackedReward) or reward.scale is None:
        raise ModelError(f"{name} is no reward run of prefine", "Name a run that prefine reward has trained.")
    trees = [tree for q, answers in _PROBES for tree in reward.trees(Question(_asked(q), answers)) or ()]
    before = reward.raw(trees).mean(1)
    heads = len(reward.scale.bias)
    # In the type it is saved in: products in bf16 would round an adapter's small deltas off the weights.
    changes = {"bias": (statistics.fmean(reward.scale.bias),), "quantization": "none", "compute_dtype": dtype}
    scale = reward.scale.model_copy(update=changes)
    if reward.scale.quantization != "none":  # adapters are merged into whole weights, and the scores say what that does
        loaded = load_model(section, None, trainable=False, heads=heads)
        reward = PackedReward(loaded, reward.scale)
    model = _merged(reward, getattr(torch, dtype))
    with atomic_write(folder) as temporary, known_noise_off():
        with standard_attention(reward.loaded.packed):
            model.save_pretrained(temporary)
        reward.tokenizer.save_pretrained(temporary)
        (temporary / SCALE_FILE).write_bytes(json_bytes(scale.as_json(), indent=2))
        loaded = reward.loaded
        base = Base(loaded.location, loaded.base_sha256, loaded.identity.config)
        describe_result(temporary, folder, base, 1, _story(portable_path(name, folder), heads, dtype))
        apart = float((_by_transformers(temporary, trees) - before).abs().max()) / scale.std
        if not apart <= _TOLERANCE[dtype]:
            raise CheckpointError(
                f"{folder}: the merged model's scores are {apart:.2g} standard deviations from those of {name}",
                "Merge in float32, or train on weights that are not quantized: on whole weights scores are others.",
            )
    return apart


def _story(name: str, heads: int, dtype: str) -> Story:
    """What README.md says of how the folder was made."""
    head = "Its score head is" if heads == 1 else f"The mean of its {heads} score heads is"
    return Story(
        ("reward",),
        (
            "## How it was made",
            "",
            f"`prefine reward merge` added the adapter of {code(name)}, if it has one, to its base model's weights.",
            f"{head} the head here. The weights are saved in {dtype}.",
            "transformers alone loaded the folder and gave the scores of that run.",
        ),
    )


def _asked(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


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
    ensure_distinct_pad_token(model, reward.loaded.template)
    return model.to(dtype)


@torch.no_grad()
def _by_transformers(folder: Path, trees: list[TokenTree]) -> Tensor:
    """Scores (answers,) by transformers' own loading, padding and pooling, as any user of the folder gets them."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    rows = [[*tree.prompt, *answer] for tree in trees for answer in tree.answers]
    if tokenizer.pad_token_id is None:  # nothing can be padding: one by one, see ensure_distinct_pad_token
        return torch.cat([model(input_ids=torch.tensor([row])).logits[:, 0] for row in rows]).float()
    batch = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
    logits: Tensor = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return logits[:, 0].float()
