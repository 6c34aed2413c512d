"""Score heads: a linear map from an answer's last hidden state to k scores, under transformers' own name for it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from prefine.data.tokens.template import ChatTemplate

# The name of the head in transformers' sequence classifiers on decoders.
SCORE = "score"
SCORE_WEIGHT = f"{SCORE}.weight"
# Its name in a PEFT adapter's file.
IN_ADAPTER = f"base_model.model.{SCORE_WEIGHT}"


@torch.no_grad()
def init_score_head(head: nn.Linear) -> None:
    """Initialise a new head: normal with standard deviation 1/√(d + 1), d the hidden size.

    The first scores of a trunk whose features have unit size are then about 1 (Huang et al. 2024, arXiv 2403.17031).
    """
    head.weight.normal_(std=1 / math.sqrt(head.in_features + 1))


def adapter_head_shape(weights: Path) -> tuple[int, int] | None:
    """(heads, hidden size) of the score head in a PEFT adapter's file; None if there is none."""
    with safe_open(weights, "pt") as file:
        if IN_ADAPTER not in file.keys():  # noqa: SIM118 - not a mapping
            return None
        heads, hidden = file.get_slice(IN_ADAPTER).get_shape()
        return int(heads), int(hidden)


def ensure_distinct_pad_token(model: Any, template: ChatTemplate) -> None:
    """Give a classifier and its tokenizer a padding token that does not end a turn.

    transformers' classifiers read their score at the last token that is not padding. If the padding token is the end
    of turn, as in many chat models, they read it one token early, and a saved model would give other scores there.
    A tokenizer without another special token gets no padding token: transformers then refuses batches of several rows,
    which is better than a wrong score.
    """
    tokenizer = template.tokenizer
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in template.turn_ends:
        special = sorted(set(tokenizer.all_special_ids) | template.control_ids)
        free = [token for token in special if token not in template.turn_ends]
        preferred = [tokenizer.unk_token_id] if tokenizer.unk_token_id in free else free
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(preferred[0]) if preferred else None
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
