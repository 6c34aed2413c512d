"""What clients may send. Every field is honoured, is named as ignored, or is refused with a reason.

Field names and ranges are those of OpenAI's API; top_k, min_p, repetition_penalty and add_special_tokens are those that
other servers have beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from prefine.records import Text
from prefine.serving.limits import MOST_CHOICES
from prefine.web.errors import ApiError

MOST_TOP_LOGPROBS = 20
MOST_STOPS = 16
MOST_MESSAGES = 4096
_MOST_TOOLS = 128
_MOST_PROMPT_IDS = 2**18
_MOST_METADATA = 16
_LONGEST_NAME = 100
_LONGEST_STOP = 256
_MOST_BIASES = 1024
_MOST_SCORED = 64
_INT32 = 2**31 - 1
_INT32_DIGITS = 10

Count = Annotated[int, Field(ge=1, le=_INT32)]
StopText = Annotated[Text, Field(min_length=1, max_length=_LONGEST_STOP)]
TokenId = Annotated[int, Field(ge=0, le=_INT32)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Bias = Annotated[Number, Field(ge=-100, le=100)]
# A list is refused at its first element that is wrong, or at the first one too many: pydantic would describe every
# wrong one of a million, while nobody else is answered.
Messages = Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True)]
Tools = Annotated[list[dict[str, Any]], Field(max_length=_MOST_TOOLS, fail_fast=True)]
PromptIds = Annotated[list[TokenId], Field(fail_fast=True)]


def _at_most(most: int) -> BeforeValidator:
    """Counts an object's entries before any of them is read, as `fail_fast` is for lists only."""

    def check(value: Any) -> Any:
        if isinstance(value, dict) and len(value) > most:
            raise ValueError(f"has {len(value):,} entries, and at most {most:,} are taken")
        return value

    return BeforeValidator(check)


Biases = Annotated[dict[str, Bias], Field(max_length=_MOST_BIASES), _at_most(_MOST_BIASES)]
Metadata = Annotated[dict[str, Text], Field(max_length=_MOST_METADATA), _at_most(_MOST_METADATA)]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _as_prompts(value: Any) -> Any:
    """A list of prompts: one text, or one prompt's ids, is a list of one."""
    if isinstance(value, str):
        return [value]
    kinds = {type(each) for each in value} if isinstance(value, list) else set()
    if kinds == {int}:
        value, kinds = [value], {list}
    count = sum(map(len, value)) if kinds == {list} else 0
    if count > _MOST_PROMPT_IDS:
        raise ValueError(f"has {count:,} token ids, and at most {_MOST_PROMPT_IDS:,} are taken")
    if kinds not in ({str}, {list}):
        raise ValueError("must be a text, a list of texts, the token ids of one prompt, or a list of such lists")
    return value


def _token_numbers(value: dict[str, float]) -> dict[str, float]:
    """Refuse keys that are not token ids as JSON writes numbers: "05" would be token 5 a second time."""
    for token in value:
        short = len(token) <= _INT32_DIGITS and token.isascii() and token.isdigit()
        if not (short and int(token) <= _INT32 and str(int(token)) == token):
            raise ValueError(f"has the key {token[:40]!r}, which is not a token id")
    return value


class Body(BaseModel):
    """A request's body. null is as if the field were not there.

    Attributes:
        ignored: fields of OpenAI's API that are taken and change nothing here.
        refused: those that would change the answer and are not supported: the values that say nothing, and what to do.
    """

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)
    ignored: ClassVar[frozenset[str]] = frozenset()
    refused: ClassVar[Mapping[str, tuple[tuple[Any, ...], str]]] = {}

    model: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: each for name, each in value.items() if each is not None}

    def require_supported(self) -> None:
        """Refuse what would be dropped silently.

        Raises:
            ApiError: a field that is not supported, or that nobody knows.
        """
        for value in dict(self).values():
            if isinstance(value, Body):
                value.require_supported()
        for name, value in (self.model_extra or {}).items():
            if name in self.ignored:
                continue
            if name in self.refused:
                neutral, remedy = self.refused[name]
                if value in neutral:
                    continue
                raise ApiError(400, f"{name}: is not supported; {remedy}", param=name, code="unsupported_parameter")
            short = name[:_LONGEST_NAME]
            near = get_close_matches(short, [*type(self).model_fields, *self.ignored], n=1)
            hint = f"did you mean {near[0]}?" if near else "remove it"
            raise ApiError(400, f"{short}: there is no such field; {hint}", param=short, code="unknown_parameter")


class SamplingBody(Body):
    """What requests for text have in common."""

    temperature: Annotated[Number, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[Number, Field(ge=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0, le=_INT32)] = 0
    min_p: Annotated[Number, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[Number, Field(ge=0.1, le=10)] = 1.0
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] = 0.0
    logit_bias: Annotated[Biases, AfterValidator(_token_numbers)] = Field(default_factory=dict)
    stop: Annotated[list[StopText], Field(max_length=MOST_STOPS, fail_fast=True), BeforeValidator(_as_list)] = Field(
        default_factory=list
    )
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] = 1
    user: Text | None = None


class StreamOptions(Body):
    """How a stream is sent."""

    ignored = frozenset({"include_obfuscation"})
    include_usage: bool = False


_HARMLESS = frozenset(
    {
        *("metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
        *("prompt_cache_options", "moderation", "parallel_tool_calls", "reasoning_effort", "verbosity", "prediction"),
    }
)


class ChatBody(SamplingBody):
    """POST /v1/chat/completions."""

    ignored = _HARMLESS
    refused: ClassVar[Mapping[str, tuple[tuple[Any, ...], str]]] = {
        "functions": (([],), "send tools, their later name"),
        "function_call": (("none", "auto"), "send tool_choice, its later name"),
        "modalities": ((["text"],), "this server gives text only"),
        "audio": ((), "this server gives text only"),
        "web_search_options": ((), "this server has no network"),
    }
    messages: Messages
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_TOP_LOGPROBS)] | None = None
    response_format: dict[str, Any] = Field(default_factory=dict)
    tools: Tools = Field(default_factory=list)
    tool_choice: Any = "auto"


class CompletionBody(SamplingBody):
    """POST /v1/completions."""

    ignored = frozenset({"metadata", "store"})
    refused: ClassVar[Mapping[str, tuple[tuple[Any, ...], str]]] = {
        "suffix": (("",), "this server's models write at the end only"),
        "best_of": ((1,), "ask for n and choose among them"),
    }
    prompt: Annotated[
        Annotated[list[Text], Field(max_length=MOST_CHOICES, fail_fast=True)]
        | Annotated[list[PromptIds], Field(max_length=MOST_CHOICES, fail_fast=True)],
        BeforeValidator(_as_prompts),
    ]
    max_tokens: Annotated[int, Field(ge=0, le=_INT32)] = 16
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    logprobs: Annotated[int, Field(ge=0, le=MOST_TOP_LOGPROBS)] | None = None
    echo: bool = False
    add_special_tokens: bool = True


class ResponsesBody(Body):
    """POST /v1/responses: text in, text out."""

    ignored = frozenset(
        {*(_HARMLESS - {"metadata"}), "include", "truncation", "stream_options", "reasoning", "max_tool_calls"}
    )
    refused: ClassVar[Mapping[str, tuple[tuple[Any, ...], str]]] = {
        "previous_response_id": ((), "this server stores no responses; send the whole conversation as input"),
        "conversation": ((), "this server stores no conversations; send the whole conversation as input"),
        "background": ((False,), "this server stores no responses"),
        "prompt": ((), "this server stores no prompts"),
        "tools": (([],), "send them to /v1/chat/completions"),
        "tool_choice": (("auto", "none"), "send tools to /v1/chat/completions"),
    }
    input: str | Messages
    instructions: Text | None = None
    max_output_tokens: Count | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[Number, Field(ge=0, le=1)] = 1.0
    top_logprobs: Literal[0] = 0
    text: dict[str, Any] = Field(default_factory=dict)
    metadata: Metadata = Field(default_factory=dict)
    stream: bool = False
    user: Text | None = None


class GenerateBody(SamplingBody):
    """POST /generate: a question, for tools that know no chat."""

    prompt: Annotated[Text, Field(min_length=1)]
    max_tokens: Count | None = None


class ScoreBody(Body):
    """POST /v1/score: answers to one conversation, each with its score."""

    messages: Messages
    completions: Annotated[list[Text], Field(min_length=1, max_length=_MOST_SCORED, fail_fast=True)]
    tools: Tools = Field(default_factory=list)
    user: Text | None = None


class TokenizeBody(Body):
    """POST /tokenize: the ids of a text, or of a conversation as the chat template writes it."""

    prompt: Text | None = None
    messages: Messages | None = None
    tools: Tools = Field(default_factory=list)
    add_special_tokens: bool = True
