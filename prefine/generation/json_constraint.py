"""JSON output: at every position only tokens that a JSON schema allows can be generated; llguidance finds them."""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

from prefine.errors import ModelError, PrefineError

# With unlimited white space, as in JSON, a small model may never stop generating it.
_WHITE_SPACE = r"[ \n\t\r]{1,40}"
# Characters: compile time grows faster than the length.
_LONGEST_SCHEMA = 64 * 1024
# JSON mode of OpenAI's API: any object.
_ANY_OBJECT = {"type": "object"}

# llguidance's tables of a tokenizer take about a second to build.
_known: weakref.WeakKeyDictionary[Any, dict[tuple[int, frozenset[int]], LLTokenizer]] = weakref.WeakKeyDictionary()


class JsonConstraint:
    """A TokenConstraint: JSON that follows a schema, then the end of turn.

    Args:
        tokenizer: transformers', a fast one.
        vocabulary: number of the model's logits.
        stop_ids: token ids that end a sequence, at least one; see Request.
        schema: a JSON schema; by default any JSON object is allowed.

    Attributes:
        failed: why the text could not continue according to the schema; None if it could. The sequence ends there.
            This happens only if a schema exceeds llguidance's limits.

    Raises:
        ModelError: the tokenizer is not a fast one, or there are no stop_ids.
        PrefineError: the schema is not valid, uses something that llguidance does not support, or cannot be satisfied.
    """

    def __init__(
        self,
        tokenizer: Any,
        vocabulary: int,
        stop_ids: frozenset[int],
        schema: Mapping[str, Any] | bool | None = None,
    ) -> None:
        known = _tokenizer(tokenizer, vocabulary, stop_ids)
        grammar = _grammar(_ANY_OBJECT if schema is None else schema, known)
        self._matcher = LLMatcher(known, grammar, log_level=0)
        self._ends = torch.zeros(vocabulary, dtype=torch.bool)
        self._ends[sorted(stop_ids)] = True
        self.failed: str | None = None

    def copy(self) -> JsonConstraint:
        """A copy in the current state, for another sequence; nothing is compiled again."""
        other = object.__new__(JsonConstraint)
        other._matcher, other._ends, other.failed = self._matcher.deep_copy(), self._ends, self.failed
        return other

    def mask(self) -> Tensor:
        """(V,) bool: the tokens that may come next; after complete JSON, only those that end the sequence."""
        if not self._matcher.is_stopped():
            bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
            allowed = torch.from_numpy(np.unpackbits(bits, count=len(self._ends), bitorder="little")).bool()
            if not self._matcher.is_error() and allowed.any():
                return allowed
        if self._matcher.is_error() and self.failed is None:
            self.failed = _first_line(self._matcher.get_error())
        return self._ends

    def accept(self, token: int) -> None:
        """Record the next token, one that the mask allowed."""
        if not self._matcher.is_stopped():
            self._matcher.consume_token(token)


def _grammar(schema: Mapping[str, Any] | bool, tokenizer: LLTokenizer) -> str:
    try:
        if isinstance(schema, bool):  # in JSON Schema: any value, or none
            schema = {} if schema else {"enum": []}
        if not isinstance(schema, Mapping):
            raise TypeError(f"it is of type {type(schema).__name__}, not an object")
        text = json.dumps(schema, allow_nan=False)
        if len(text) > _LONGEST_SCHEMA:
            raise ValueError(f"it has {len(text):,} characters, and {_LONGEST_SCHEMA:,} are allowed")
        grammar = LLMatcher.grammar_from_json_schema(text, overrides={"whitespace_pattern": _WHITE_SPACE})
        problem = LLMatcher.validate_grammar(grammar, tokenizer)
    except (TypeError, ValueError, RecursionError) as error:
        problem = str(error)
    if problem and not problem.startswith("WARNING"):
        raise PrefineError(
            f"the JSON schema cannot be used: {_first_line(problem)}",
            "Change the schema, or request JSON without one.",
            field="schema",
        )
    return grammar


def _first_line(message: str) -> str:
    """llguidance's message, without the state of its parser."""
    return " ".join(message.split("<state>")[0].split())


def _tokenizer(tokenizer: Any, vocabulary: int, stop_ids: frozenset[int]) -> LLTokenizer:
    """llguidance's tables of a tokenizer, cached."""
    if not stop_ids:
        raise ModelError("no token ends the model's turn, so JSON would never end", "Request plain text.")
    known = _known.setdefault(tokenizer, {})
    name = (vocabulary, stop_ids)
    if name not in known:
        from llguidance import hf

        try:
            # The mask is cut to the tokens that the model has logits for.
            known[name] = hf.from_tokenizer(tokenizer, max(vocabulary, len(tokenizer)), sorted(stop_ids))
        except ValueError as error:
            raise ModelError(
                f"JSON output needs a fast tokenizer (tokenizer.json): {_first_line(str(error))}", "Request plain text."
            ) from None
    return known[name]
