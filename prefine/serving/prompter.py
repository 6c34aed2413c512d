"""A model's prompts, made on a thread of its own.

A chat template is a program that others wrote, and long texts take a while to tokenize: neither may hold up the event
loop. Template and tokenizer are used by that thread alone, as neither is made for two.
"""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, TypeVar

from prefine.data.tokens.template import ChatTemplate
from prefine.records import Prompt
from prefine.serving.fair_queue import Client, FairQueue
from prefine.serving.tickets import overloaded, shutting_down
from prefine.web.errors import ApiError

T = TypeVar("T")
_RETRY_S = 10


class _Work(NamedTuple):
    make: Callable[[Prompter], Any]
    result: Future[Any]


class Prompter:
    """Makes prompts of one model.

    Args:
        template: not to be used elsewhere.
        name: of the model, for the thread's name.
        context: the longest sequence, in tokens.
        most_waiting: calls of one address that may wait.

    Attributes:
        tokenizer: the template's.
        context: as given.
    """

    def __init__(self, template: ChatTemplate, name: str, context: int, most_waiting: int) -> None:
        self._template = template
        self.tokenizer = template.tokenizer
        self.context = context
        self._longest = longest_token(template.tokenizer)
        self._most_waiting = most_waiting
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"prefine-prompts-{name}")
        self._lock = threading.Lock()
        self._waiting: FairQueue[_Work] = FairQueue()
        self._closed = False

    async def run(self, make: Callable[[Prompter], T], client: Client) -> T:
        """Call a function with this prompter on its thread; clients take turns. A call that is cancelled does not wait.

        Raises:
            ApiError: 429 where too many calls of this address wait, 503 where the server is shutting down.
        """
        work = _Work(make, Future())
        with self._lock:
            if self._closed:
                raise shutting_down()
            if (waiting := self._waiting.waiting_of(client.address)) >= self._most_waiting:
                raise overloaded(waiting, _RETRY_S)
            self._waiting.add(client, work)
            self._thread.submit(self._next)
        try:
            result: T = await asyncio.wrap_future(work.result)
        except asyncio.CancelledError:
            with self._lock:
                self._waiting.remove(work)
            raise
        return result

    def _next(self) -> None:
        with self._lock:
            if not self._waiting:  # what it was for has been given up
                return
            work = self._waiting.pop()
        if work.result.set_running_or_notify_cancel():
            try:
                work.result.set_result(work.make(self))
            except BaseException as error:  # noqa: BLE001 - whatever it raises is its caller's
                work.result.set_exception(error)

    def close(self) -> None:
        """End the thread; what waits is refused."""
        with self._lock:
            self._closed = True
            while self._waiting:
                work = self._waiting.pop()
                if work.result.set_running_or_notify_cancel():
                    work.result.set_exception(shutting_down())
        self._thread.shutdown(wait=False, cancel_futures=True)

    def conversation_ids(self, prompt: Prompt) -> list[int]:
        """Ids up to where the answer begins.

        Raises:
            TemplateError: the chat template refuses the conversation.
            ApiError: it is longer than the context, whatever its tokens are.
        """
        return self._template.prompt_ids(prompt.prompt, prompt.tools, check=partial(self._require_short, "messages"))

    def text_ids(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Ids of a raw prompt. Control tokens in it are meant: whoever sends one has written the whole prompt.

        Args:
            add_special_tokens: whether to begin it as the tokenizer begins texts, with a begin-of-sequence token where
                it has one; never a second one. A text of no tokens becomes that token, or the end of sequence.

        Raises:
            ApiError: it is longer than the context, whatever its tokens are.
        """
        self._require_short("prompt", text)
        tokenizer = self.tokenizer
        ids: list[int] = tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]
        begin = tokenizer.bos_token_id
        if add_special_tokens and begin is not None and ids[:2] == [begin, begin]:
            ids = ids[1:]
        return ids or [tokenizer.eos_token_id if begin is None else begin]

    def _require_short(self, param: str, text: str) -> None:
        """Refuse what cannot fit, before it is tokenized: that takes seconds for a text of megabytes."""
        if self._longest is None or len(text) <= (most := self.context * self._longest):
            return
        normalizer = self.tokenizer.backend_tokenizer.normalizer
        if normalizer is None or len(normalizer.normalize_str(text)) > most:
            raise ApiError(
                400,
                f"{param}: has {len(text):,} characters, and the model's context of {self.context:,} tokens holds no "
                f"more than {most:,}; shorten it",
                param=param,
                code="context_length_exceeded",
            )


def longest_token(tokenizer: Any) -> int | None:
    """The most characters that a token stands for; None where nothing limits them.

    A tokenizer without bytes may have one unknown token for any number of characters.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    model = backend.model
    whole = getattr(model, "byte_fallback", False) or getattr(model, "unk_token", "") is None
    return max(map(len, tokenizer.get_vocab())) if whole else None


def own_tokenizer(template: ChatTemplate) -> Any:
    """A copy of a template's tokenizer, for another thread."""
    return copy.deepcopy(template.tokenizer)
