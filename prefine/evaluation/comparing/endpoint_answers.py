"""Answers of a model behind an endpoint. Replies are kept on disk: what was paid for is not asked for again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from prefine.errors import EndpointError
from prefine.evaluation.comparing.answering import SideAnswer
from prefine.evaluation.comparing.questions import EvaluationPrompt
from prefine.evaluation.comparing.sides import ENDPOINT_KEY_VARIABLE, EndpointName
from prefine.generation.sampling import Sampling
from prefine.judges.cache import Reply, ReplyCache, key_of
from prefine.judges.chat_form import ChatForm, FormedChat
from prefine.judges.endpoint import Endpoint, Patience

_FILTERED = "content_filter"


def ask_all(
    name: EndpointName,
    prompts: Sequence[EvaluationPrompt],
    seeds: Sequence[int],
    sampling: Sampling,
    cache: ReplyCache,
    progress: Callable[[int], None] = lambda done: None,
    patience: Patience | None = None,
    *,
    problems: list[EndpointError] | None = None,
    first_wait_s: float = 1.0,
) -> list[SideAnswer]:
    """Answers to prompts, in order. One that does not come has its reason in `failed`; the next call asks again.

    Once the endpoint is down or refuses the key, the rest is not asked.

    Args:
        seeds: of each answer.
        patience: how endpoints are asked.
        problems: receives an error for each answer that did not come.
        first_wait_s: see Endpoint.
    """
    asked = patience or Patience()
    with (
        Endpoint(
            name.url,
            key_variable=ENDPOINT_KEY_VARIABLE,
            timeout_s=asked.timeout_s,
            attempts=asked.attempts,
            first_wait_s=first_wait_s,
        ) as endpoint,
        ThreadPoolExecutor(asked.at_once) as pool,
    ):
        chat = FormedChat(endpoint, ChatForm(_optional(sampling)))

        def answered(prompt: EvaluationPrompt, seed: int) -> SideAnswer:
            body = _body(name.model, prompt, seed, sampling)
            key = key_of(endpoint.url, body)
            try:
                reply = cache.get(key)
                if reply is None:
                    reply = chat.ask(body)
                    if reply.finish_reason != _FILTERED:  # a filter may change its mind
                        cache.put(key, name.model, reply)
            except EndpointError as error:
                if problems is not None:
                    problems.append(error)
                return SideAnswer(failed=error.problem)
            return _answer(reply)

        waiting = [pool.submit(answered, prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        found = []
        try:
            for each in waiting:
                found.append(each.result())
                progress(len(found))
        except BaseException:
            endpoint.stop()
            pool.shutdown(cancel_futures=True)
            raise
    return found


def _optional(sampling: Sampling) -> tuple[str, ...]:
    """Fields that may be left out of a request, as it then means the same: some models take no sampling settings but
    their own. A seed only makes answers repeatable.
    """
    defaults = {"temperature": sampling.temperature == 1, "top_p": sampling.top_p == 1}
    return ("seed", *(name for name, is_default in defaults.items() if is_default))


def _body(model: str, prompt: EvaluationPrompt, seed: int, sampling: Sampling) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": seed,
    }
    if sampling.top_k:  # not in OpenAI's API; vLLM, llama.cpp and prefine serve know it
        settings["top_k"] = sampling.top_k
    if prompt.tools:
        settings["tools"] = list(prompt.tools)
    return {"model": model, "messages": prompt.turns, **settings}


def _answer(reply: Reply) -> SideAnswer:
    if reply.finish_reason == _FILTERED:
        return SideAnswer(failed="the endpoint's content filter held the answer back")
    return SideAnswer(
        text=reply.text.strip(), tokens=reply.completion_tokens or 0, ended=reply.finish_reason not in ("length", "")
    )
