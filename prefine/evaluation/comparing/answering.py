"""The answers of a compared model: generated in blocks with random numbers that depend on the prompt alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prefine.data.tokens.fitting import fit_prompt
from prefine.errors import TemplateError
from prefine.evaluation.comparing.questions import EvaluationPrompt
from prefine.generation.answers import room_for_prompts
from prefine.generation.engine import writer_for
from prefine.generation.sampling import Sampling
from prefine.generation.writer import Generated, Request
from prefine.models.loading.load import LoadedModel

_DECIMALS = 7  # a float32 has no more


@dataclass(frozen=True)
class SideAnswer:
    """One model's answer.

    Attributes:
        text: without control tokens.
        ids: its tokens, the end of turn included; empty for an endpoint.
        tokens: how many there are.
        prompt: the prompt's tokens as the model saw them; empty for an endpoint.
        logprobs: of the tokens under the model itself, nats; empty for an endpoint.
        entropy: mean over tokens of the model's distribution at each, nats; None if unknown.
        cut: what of the prompt the model was not asked, as it did not fit its context; "" if nothing.
        failed: why there is no answer; "" if there is one.
    """

    text: str = ""
    ids: tuple[int, ...] = ()
    tokens: int = 0
    ended: bool = False
    prompt: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    entropy: float | None = None
    cut: str = ""
    failed: str = ""

    def as_row(self) -> dict[str, Any]:
        """For a part of the comparison's folder."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}

    @staticmethod
    def of_row(row: dict[str, Any]) -> SideAnswer:
        """From `as_row`."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in row.items()
        }
        return SideAnswer(**values)


def write_block(
    loaded: LoadedModel, prompts: Sequence[EvaluationPrompt], seeds: Sequence[int], sampling: Sampling, slots: int
) -> Iterator[SideAnswer]:
    """Answers to prompts, in order. The block is computed together: its rounding does not depend on other blocks.

    Args:
        seeds: of each answer's random numbers.
    """
    template = loaded.template
    room = room_for_prompts(loaded.packed, sampling.max_new_tokens)
    writer = writer_for(loaded.packed, loaded.tokenizer, slots)
    waiting: list[tuple[int, tuple[int, ...], str] | str] = []
    for each, seed in zip(prompts, seeds, strict=True):
        try:
            fitted = fit_prompt(template, each.prompt, room, each.tools)
        except TemplateError as error:
            waiting.append(f"the chat template refuses it: {error.problem}")
            continue
        if fitted is None:
            waiting.append("it leaves no room for an answer in the model's context")
            continue
        ids = tuple(fitted.tree.prompt)
        request = Request(ids, replace(sampling, seed=seed), template.stop_ids, entropies=True)
        waiting.append((writer.add(request), ids, fitted.what_is_cut))
    found: dict[int, Generated] = {}
    for each_waiting in waiting:
        if isinstance(each_waiting, str):
            yield SideAnswer(failed=each_waiting)
            continue
        number, ids, cut = each_waiting
        while number not in found:
            found |= dict(writer.step())
        yield _answer(found.pop(number), ids, cut)


def _answer(generated: Generated, prompt: tuple[int, ...], cut: str) -> SideAnswer:
    entropies = generated.entropies
    return SideAnswer(
        text=generated.text.strip(),
        ids=generated.tokens,
        tokens=len(generated.tokens),
        ended=generated.finish == "stop",
        prompt=prompt,
        logprobs=tuple(round(each, _DECIMALS) for each in generated.logprobs),
        entropy=round(sum(entropies) / len(entropies), _DECIMALS) if entropies else None,
        cut=cut,
    )
