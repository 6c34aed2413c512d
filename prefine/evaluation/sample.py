"""Answers a model writes to prompts, in batches, through transformers' generate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prefine.data.template import ChatTemplate
from prefine.models.forward import PackedModel, standard_attention

_PROMPTS_AT_ONCE = 16


@dataclass(frozen=True)
class Answer:
    """One generated answer.

    Attributes:
        text: decoded, without control tokens.
        tokens: generated tokens, the end of turn included.
        ended: whether the model ended its turn itself; False where max_new_tokens cut it.
    """

    text: str
    tokens: int
    ended: bool


def generation_settings(template: ChatTemplate, max_new_tokens: int, temperature: float) -> dict[str, Any]:
    """Arguments for transformers' generate: greedy at temperature 0; stops at the template's end of turn.

    What else shapes sampling (top_p, say) is as the model's own generation_config has it.
    """
    stops = sorted(template.stop_ids)
    settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "eos_token_id": stops, "pad_token_id": stops[0]}
    if temperature == 0:
        return {**settings, "do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    return {**settings, "do_sample": True, "temperature": temperature}


def left_padded(prompts: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Prompts as input_ids (N, L) and attention_mask (N, L), both int64, padded on the left."""
    length = max(map(len, prompts))
    ids = [[pad] * (length - len(p)) + list(p) for p in prompts]
    mask = [[0] * (length - len(p)) + [1] * len(p) for p in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


@torch.no_grad()
def write_answers(
    model: PackedModel,
    template: ChatTemplate,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Answer]:
    """One answer a prompt, in order.

    A prompt that leaves no room for the answer in the model's context is cut from the left, as in training. The global
    random state is left as it was found, so that writing samples changes nothing in training.
    """
    limit = getattr(model.causal.config.get_text_config(), "max_position_embeddings", None) or 1 << 30
    max_new_tokens = min(max_new_tokens, limit - 1)
    prompts = [prompt[max_new_tokens - limit :] for prompt in prompts]
    settings = generation_settings(template, max_new_tokens, temperature)
    answers: list[Answer] = []
    training = model.training
    model.eval()
    devices = [model.device.index or 0] if model.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices), standard_attention(model) as generator:
            torch.manual_seed(seed)
            for first in range(0, len(prompts), _PROMPTS_AT_ONCE):
                some = prompts[first : first + _PROMPTS_AT_ONCE]
                ids, mask = left_padded(some, settings["pad_token_id"], model.device)
                with model.autocast():
                    out = generator.generate(input_ids=ids, attention_mask=mask, use_cache=True, **settings)
                answers += [_answer(row, template) for row in out[:, ids.shape[1] :].tolist()]
                progress(len(answers))
    finally:
        model.train(training)
    return answers


def _answer(ids: list[int], template: ChatTemplate) -> Answer:
    end = next((i for i, token in enumerate(ids) if token in template.stop_ids), None)
    written = ids if end is None else ids[:end]
    text = template.tokenizer.decode(written, skip_special_tokens=True).strip()
    return Answer(text, len(written) + (end is not None), end is not None)
