"""A loaded model as lm-eval-harness asks for it. Imports lm_eval, which is optional."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from prefine.generation.answers import context_of
from prefine.generation.engine import writer_for
from prefine.generation.sampling import Sampling
from prefine.generation.writer import Request
from prefine.models.loading.load import LoadedModel

_NEW_TOKENS = 256  # lm-eval's own default for models from transformers


class HarnessModel(TemplateLM):  # type: ignore[misc]
    """See lm_eval.api.model.LM. Texts are encoded without special tokens, as lm-eval does for causal models.

    Args:
        loaded: the model; its adapter must be active.
        slots: sequences at once.
    """

    def __init__(self, loaded: LoadedModel, slots: int) -> None:
        super().__init__()
        self._loaded = loaded
        self._slots = slots
        self._context = context_of(loaded.packed)

    @property
    def eot_token_id(self) -> int:
        """The token that an empty context is replaced by."""
        return int(self._loaded.tokenizer.eos_token_id)

    @property
    def tokenizer_name(self) -> str:
        """For lm-eval's cache of requests."""
        return str(self._loaded.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids of a text."""
        ids: list[int] = self._loaded.tokenizer.encode(string, add_special_tokens=bool(add_special_tokens))
        return ids

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as text."""
        text = self._loaded.tokenizer.apply_chat_template(
            chat_history, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        return str(text)

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        """For each ((context, continuation), context ids, continuation ids) the continuation's log-probability, nats,
        and whether each of its tokens is the likeliest one. Long contexts are cut from the left.
        """
        asked = []
        for _, context, continuation in requests:
            ids = [*context, *continuation][-self._context :]
            asked.append(Request(ids, Sampling(0), frozenset(), top_logprobs=1, prompt_logprobs=True))
        writer = writer_for(self._loaded.packed, self._loaded.tokenizer, self._slots)
        found = []
        for (_, _, continuation), generated in zip(requests, writer.write(asked), strict=True):
            tokens = generated.prompt_logprobs[len(generated.prompt_logprobs) - len(continuation) :]
            known = [each for each in tokens if each is not None]
            likeliest = all(each.top[0][0] == each.token for each in known)
            found.append((sum(each.logprob for each in known), likeliest))
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], **_: Any) -> list[float]:
        """The log-probability of each whole text, nats, in windows of the context's length."""
        found = []
        for request in requests:
            (text,) = request.args
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.eot_token_id,
                max_seq_len=self._context - 1,
                context_len=1,
            )
            parts = [(None, *make_disjoint_window(window)) for window in windows]
            found.append(sum(logprob for logprob, _ in self._loglikelihood_tokens(parts)))
        return found

    def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
        """A continuation of each context, up to one of its stop texts; greedy unless a task says otherwise."""
        asked = []
        for request in requests:
            context, settings = request.args
            until = settings.get("until") or []
            most = min(int(settings.get("max_gen_toks", _NEW_TOKENS)), self._context - 1)
            sampled = settings.get("do_sample", (settings.get("temperature") or 0) > 0)
            sampling = Sampling(
                most,
                temperature=float(settings.get("temperature") or 1.0) if sampled else 0.0,
                top_p=float(settings.get("top_p") or 1.0),
                stop=(until,) if isinstance(until, str) else tuple(each for each in until if each),
            )
            ids = self.tok_encode(context)[most - self._context :] or [self.eot_token_id]
            asked.append(Request(ids, sampling, self._loaded.template.stop_ids))
        writer = writer_for(self._loaded.packed, self._loaded.tokenizer, self._slots)
        return [generated.text for generated in writer.write(asked)]
