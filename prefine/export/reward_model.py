"""A reward run as one whole model, for who scores with transformers alone; the file is proved to score alike."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prefine.data.tokens.trees import TokenTree
from prefine.errors import CheckpointError, ModelError, about
from prefine.export.merging import dense
from prefine.export.reload import SAFELY
from prefine.models.forward.packed import standard_attention
from prefine.models.loading.card import Story, code, describe_result
from prefine.models.loading.heads import SCORE, ensure_distinct_pad_token
from prefine.models.loading.location import absolute_name, portable_path
from prefine.models.loading.quiet import known_noise_off
from prefine.models.loading.weights import SCALE_FILE
from prefine.models.scoring.packed_scorer import PackedReward, load_reward
from prefine.models.scoring.scorer import Question, ScoreScale
from prefine.recipe.sections import ModelSection, named_model
from prefine.records import Message
from prefine.runs.atomic import atomic_write, json_bytes

# In standard deviations of the scores; a merge in fp32 moves them by rounding alone, one into bf16 by its three digits.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}
# Products with int8 weights round their inputs, too, to 8 bits of the largest in a row.
_INT8_TOLERANCE = 0.1
_PROBES = (
    ("What is the capital of France?", ("The capital of France is Paris.", "I don't know.", "")),
    ("My parcel is late. What now?", ("Send me the order number and I will ask the carrier today.", "Wait.")),
)


@dataclass(frozen=True)
class ProbeScores:
    """A reward run's raw scores of the probes, mean over its heads.

    Attributes:
        trees: prompts and answers, as the run encodes them.
        turns: of each tree's prompt.
        scores: (answers,) fp32, in the trees' order.
        std: of the run's held-out scores.
        quantization: of the run's base.
    """

    trees: list[TokenTree]
    turns: list[tuple[Message, ...]]
    scores: Tensor
    std: float
    quantization: str

    def tolerance(self, dtype: str) -> float:
        """How far scores of the model merged in `dtype` may be from these."""
        return max(TOLERANCE[dtype], _INT8_TOLERANCE if self.quantization == "int8" else 0.0)

    def apart(self, found: Tensor) -> float:
        """How far other scores of the same answers are at most, in standard deviations."""
        return float((found - self.scores).abs().max()) / self.std


def merge_reward(name: str, folder: Path, dtype: str = "float32") -> float:
    """Merge a reward run's adapter into its base and save both with the head, in the ecosystem's own form.

    See write_merged_reward.

    Returns: how far the scores of the saved model, loaded by transformers alone, are from those of the run at most, in
        standard deviations of its held-out scores.

    Raises:
        ModelError: no reward model of prefine's; an unknown type.
        CheckpointError: the folder is taken or cannot be written, or the saved model scores otherwise.
    """
    if folder.exists():
        raise CheckpointError(f"{folder} is there already", "Name a folder that is not.")
    if not folder.parent.is_dir():
        raise CheckpointError(f"{folder}: there is no folder {folder.parent}", "Create it first.")
    require_known_dtype(dtype)
    with atomic_write(folder) as temporary:
        probes = write_merged_reward(name, temporary, folder, dtype)
        apart = probes.apart(scores_by_transformers(temporary, probes.trees))
        if not apart <= probes.tolerance(dtype):
            raise CheckpointError(
                f"{folder}: the merged model's scores are {apart:.2g} standard deviations from those of {name}",
                "Merge in float32.",
            )
    return apart


def require_known_dtype(dtype: str) -> None:
    """Raise ModelError for a type that reward models are not saved in."""
    if dtype not in TOLERANCE:
        raise ModelError(f"--dtype: {dtype!r} is not known", f"Choose one of {', '.join(TOLERANCE)}.")


def write_merged_reward(name: str, written: Path, folder: Path, dtype: str) -> ProbeScores:
    """Save a reward run as one model.

    `AutoModelForSequenceClassification.from_pretrained(folder)` then gives the raw score as its one label; the bias to
    subtract is in reward.json. Several heads become one, their mean. Weights that were quantised in training are
    dequantised to those that it saw.

    Args:
        written: where it is written now.
        folder: where it will be.
        dtype: of the weights; float32 or bfloat16.

    Returns: the run's scores, to compare with.

    Raises:
        ModelError: no reward model of prefine's.
    """
    section, reward, scale = _loaded(name)
    probes = _probe_scores(reward, scale)
    heads = len(scale.bias)
    # In the type it is saved in: products in bf16 would round an adapter's small deltas off the weights.
    changes = {"bias": (statistics.fmean(scale.bias),), "quantization": "none", "compute_dtype": dtype}
    if scale.quantization != "none":
        reward = PackedReward(dense(reward.loaded, section, heads), scale)
    model = _merged(reward, getattr(torch, dtype))
    with known_noise_off():
        with standard_attention(reward.loaded.packed):
            model.save_pretrained(written)
        reward.tokenizer.save_pretrained(written)
    (written / SCALE_FILE).write_bytes(json_bytes(scale.model_copy(update=changes).as_json(), indent=2))
    loaded = reward.loaded
    source = portable_path(absolute_name(name), folder)
    describe_result(written, folder, loaded.as_base(), 1, _story(source, heads, dtype))
    return probes


def probe_scores(name: str) -> ProbeScores:
    """A reward run's raw scores of the probes. Raises ModelError: it is no reward model of prefine's."""
    _, reward, scale = _loaded(name)
    return _probe_scores(reward, scale)


def _loaded(name: str) -> tuple[ModelSection, PackedReward, ScoreScale]:
    with about(None):
        section = named_model(name, device="cpu", dtype="float32")
        reward = load_reward(section)
    if not isinstance(reward, PackedReward) or reward.scale is None:
        raise ModelError(f"{name} is no reward run of prefine", "Name a run that prefine reward has trained.")
    return section, reward, reward.scale


def _probe_scores(reward: PackedReward, scale: ScoreScale) -> ProbeScores:
    asked = [
        (_asked(question), reward.trees(Question(_asked(question), answers)) or ()) for question, answers in _PROBES
    ]
    trees = [tree for _, found in asked for tree in found]
    turns = [question for question, found in asked for _ in found]
    return ProbeScores(trees, turns, reward.raw(trees).mean(1), scale.std, scale.quantization)


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
def scores_by_transformers(folder: Path, trees: list[TokenTree]) -> Tensor:
    """Scores (answers,) by transformers' own loading, padding and pooling, as any user of the folder gets them."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = AutoModelForSequenceClassification.from_pretrained(folder, **SAFELY).eval()
    rows = [[*tree.prompt, *answer] for tree in trees for answer in tree.answers]
    if tokenizer.pad_token_id is None:  # nothing can be padding: one by one, see ensure_distinct_pad_token
        return torch.cat([model(input_ids=torch.tensor([row])).logits[:, 0] for row in rows]).float()
    batch = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
    logits: Tensor = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return logits[:, 0].float()
