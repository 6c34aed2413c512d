"""A model's answers to prompts, in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prefine.data.tokens.template import ChatTemplate
from prefine.degeneration import Looks, look_at
from prefine.errors import RecipeError
from prefine.generation.engine import writer_for
from prefine.generation.sampling import Sampling
from prefine.generation.writer import Generated, Request
from prefine.models.forward.packed import PackedModel

_SLOTS = 32


@dataclass(frozen=True)
class Answer:
    """One generated answer.

    Attributes:
        text: decoded, without control tokens.
        tokens: generated tokens, the end of turn included.
        ended: whether the model ended its turn itself; False if max_new_tokens cut it.
        looks: whether it is blank, stuck or looping.
    """

    text: str
    tokens: int
    ended: bool
    looks: Looks


def context_of(model: PackedModel) -> int:
    """A model's context length in tokens; very large if its config has none."""
    return getattr(model.causal.config.get_text_config(), "max_position_embeddings", None) or 1 << 30


def room_for_prompts(model: PackedModel, max_new_tokens: int) -> int:
    """The length of the longest prompt, in tokens, that leaves room for `max_new_tokens`.

    Raises:
        RecipeError: there is no room for a prompt.
    """
    context = context_of(model)
    if max_new_tokens >= context:
        raise RecipeError(
            f"max_new_tokens is {max_new_tokens}, but the model's context is {context} tokens, prompt included",
            f"Set it to less than {context}.",
        )
    return context - max_new_tokens


def room_for_samples(model: PackedModel, max_new_tokens: int) -> int:
    """The length of the longest prompt, in tokens. In a small context, answers are shorter than requested."""
    context = context_of(model)
    return context - min(max_new_tokens, context - 1)


def write_answers(
    model: PackedModel,
    template: ChatTemplate,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Answer]:
    """One answer per prompt, in order.

    A prompt that leaves no room for its answer in the model's context is cut from the left, as in training. The answers
    use their own random numbers, so that samples do not change training.
    """
    limit = context_of(model)
    max_new_tokens = min(max_new_tokens, limit - 1)
    requests = [
        Request(
            prompt[max_new_tokens - limit :],
            Sampling(max_new_tokens, temperature=temperature, seed=seed + place),
            template.stop_ids,
        )
        for place, prompt in enumerate(prompts)
    ]
    return [_answer(each) for each in writer_for(model, template.tokenizer, _SLOTS).write(requests, progress)]


def _answer(generated: Generated) -> Answer:
    looks = look_at(generated.text, generated.tokens)
    return Answer(generated.text.strip(), len(generated.tokens), generated.ended, looks)
