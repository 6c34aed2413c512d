"""Writes through transformers' generate, batch after batch, for models that take no packed rows.

Tokens are chosen by generation/sampling.py, so that settings, random numbers and results are those of the slots.
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
    """Leaves of each row's logits the one token that was chosen, so that transformers takes it."""

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
    """Stops each row where its sequence has ended."""

    def __init__(self, writings: list[ActiveSequence]) -> None:
        self._writings = writings

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        done = [writing.finish is not None for writing in self._writings]
        return torch.tensor(done, device=input_ids.device)


class PaddedWriter(Writer):
    """Writes a batch at a time; a cancelled request ends with its batch's next token."""

    def _write_on(self) -> None:
        """Write one batch to its end."""
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
            # Where a callback has raised, the batch ends as far as it was written.
            self._done += self._active
            self._active = []

    def _score_prompts(self) -> None:
        """Take log-probabilities of prompts where they are asked for, from a forward of each prompt alone."""
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
    """A model's own generation defaults (penalties, beams) are not the request's."""
    own = causal.generation_config
    causal.generation_config = GenerationConfig()
    try:
        yield
    finally:
        causal.generation_config = own
