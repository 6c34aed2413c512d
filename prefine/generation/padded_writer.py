"""Generates with transformers' generate, batch after batch, for models that do not take packed rows.

generation/sampling.py chooses the tokens, so settings, random numbers and results are the same as with slots.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from prefine.generation.writer import ActiveSequence, Writer
from prefine.models.forward.packed import evaluating, standard_attention
from prefine.models.forward.rotary import forget_lengths


class _Chooser(LogitsProcessor):  # type: ignore[misc]
    """Masks each row's logits except the chosen token, so that transformers takes that one."""

    def __init__(
        self, writings: list[ActiveSequence], add_tokens: Callable[[list[ActiveSequence], Tensor], None]
    ) -> None:
        self._writings = writings
        self._add_tokens = add_tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        going = [place for place, writing in enumerate(self._writings) if writing.finish is None]
        chosen = torch.zeros(len(scores), dtype=torch.int64, device=scores.device)
        if going:
            self._add_tokens([self._writings[place] for place in going], scores[going])
            for place in going:
                chosen[place] = self._writings[place].tokens[-1]
        return torch.full_like(scores, float("-inf")).scatter_(1, chosen[:, None], 0.0)


class _Finished(StoppingCriteria):  # type: ignore[misc]
    """Stops each row when its sequence has ended."""

    def __init__(self, writings: list[ActiveSequence]) -> None:
        self._writings = writings

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        done = [writing.finish is not None for writing in self._writings]
        return torch.tensor(done, device=input_ids.device)


class PaddedWriter(Writer):
    """Generates one batch at a time; a cancelled request ends with its batch's next token."""

    def _write_on(self) -> None:
        """Generate one batch to its end."""
        self._active = [self._queue.popleft() for _ in range(min(self.slots, len(self._queue)))]
        try:
            if self._active:
                with evaluating(self.model), _own_defaults_off(self.model.causal):
                    self._score_prompts()
                    going = [writing for writing in self._active if writing.request.sampling.max_new_tokens]
                    if going:
                        self._generate(going)
            for writing in self._active:
                writing.finish = writing.finish or "length"
        finally:
            # If a callback raised, the batch ends with the tokens so far.
            self._done += self._active
            self._active = []

    def _score_prompts(self) -> None:
        """Compute log-probabilities of prompts where requested, with a forward of each prompt alone."""
        for writing in self._active:
            if writing.request.prompt_logprobs:
                ids = torch.tensor([writing.request.prompt])
                forget_lengths(self.model)
                with standard_attention(self.model), self.model.autocast():
                    logits = self.model.causal(input_ids=ids.to(self.model.device), use_cache=False).logits[0]
                writing.hear_prompt(logits[:-1], ids[0, 1:])

    def _generate(self, writings: list[ActiveSequence]) -> None:
        device = self.model.device
        prompts = [torch.tensor(writing.request.prompt) for writing in writings]
        length = max(map(len, prompts))
        ids = torch.stack([torch.nn.functional.pad(prompt, (length - len(prompt), 0)) for prompt in prompts])
        mask = torch.stack([torch.arange(length) >= length - len(prompt) for prompt in prompts]).long()
        forget_lengths(self.model)
        longest = max(writing.request.sampling.max_new_tokens for writing in writings)
        with standard_attention(self.model) as generator, self.model.autocast():
            generator.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                max_new_tokens=longest,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                eos_token_id=None,
                pad_token_id=0,
                use_cache=True,
                logits_processor=LogitsProcessorList([_Chooser(writings, self._add_tokens)]),
                stopping_criteria=StoppingCriteriaList([_Finished(writings)]),
            )


@contextmanager
def _own_defaults_off(causal: Any) -> Iterator[None]:
    """Inside, the model's own generation defaults (penalties, beams) are off."""
    own = causal.generation_config
    causal.generation_config = GenerationConfig()
    try:
        yield
    finally:
        causal.generation_config = own
