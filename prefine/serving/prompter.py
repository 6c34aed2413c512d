"""A model's prompts, made on a thread of its own.

A chat template is a program that others wrote, and long texts take a while to tokenize: neither may hold up the event
loop. Template and tokenizer are used by that thread alone, as neither is made for two.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from prefine.data.tokens.template import ChatTemplate
from prefine.records import Prompt

T = TypeVar("T")


class Prompter:
    """Makes prompts of one model.

    Args:
        template: not to be used elsewhere.
        name: of the model, for the thread's name.

    Attributes:
        tokenizer: the template's.
    """

    def __init__(self, template: ChatTemplate, name: str) -> None:
        self._template = template
        self.tokenizer = template.tokenizer
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"prefine-prompts-{name}")

    async def run(self, make: Callable[[Prompter], T]) -> T:
        """Call a function with this prompter on its thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, make, self)

    def close(self) -> None:
        """End the thread; what waits is given up."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def conversation_ids(self, prompt: Prompt) -> list[int]:
        """Ids up to where the answer begins.

        Raises:
            TemplateError: the chat template refuses the conversation.
        """
        return self._template.prompt_ids(prompt.prompt, prompt.tools)

    def text_ids(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Ids of a raw prompt. Control tokens in it are meant: whoever sends one has written the whole prompt.

        Args:
            add_special_tokens: whether to begin it as the tokenizer begins texts, with a begin-of-sequence token where
                it has one; never a second one. A text of no tokens becomes that token, or the end of sequence.
        """
        tokenizer = self.tokenizer
        ids: list[int] = tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]
        begin = tokenizer.bos_token_id
        if add_special_tokens and begin is not None and ids[:2] == [begin, begin]:
            ids = ids[1:]
        return ids or [tokenizer.eos_token_id if begin is None else begin]


def own_tokenizer(template: ChatTemplate) -> Any:
    """A copy of a template's tokenizer, for another thread."""
    return copy.deepcopy(template.tokenizer)
