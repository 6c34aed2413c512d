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
_LONGEST_STOP = 256
_MOST_BIASES = 1024
_MOST_SCORED = 64
_INT32 = 2**31 - 1

Count = Annotated[int, Field(ge=1, le=_INT32)]
StopText = Annotated[Text, Field(min_length=1, max_length=_LONGEST_STOP)]
TokenId = Annotated[int, Field(ge=0, le=_INT32)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Bias = Annotated[Number, Field(ge=-100, le=100)]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _as_prompts(value: Any) -> Any:
    """A list of prompts: one text, or one prompt's ids, is a list of one."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value and all(type(each) is int for each in value):
        return [value]
    kinds = {type(each) for each in value} if isinstance(value, list) else set()
    if kinds not in ({str}, {list}):
        raise ValueError("must be a text, a list of texts, the token ids of one prompt, or a list of such lists")
    return value


def _token_numbers(value: dict[str, float]) -> dict[str, float]:
    for token in value:
        if not (token.isascii() and token.isdigit() and int(token[:20]) <= _INT32):
            raise ValueError(f"{token[:40]!r} is no token id")
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
            near = get_close_matches(name, [*type(self).model_fields, *self.ignored], n=1)
            hint = f"did you mean {near[0]}?" if near else "remove it"
            short = name[:100]
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
    logit_bias: Annotated[dict[str, Bias], Field(max_length=_MOST_BIASES), AfterValidator(_token_numbers)] = Field(
        default_factory=dict
    )
    stop: Annotated[list[StopText], BeforeValidator(_as_list), Field(max_length=MOST_STOPS)] = Field(
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
    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_TOP_LOGPROBS)] | None = None
    response_format: dict[str, Any] = Field(default_factory=dict)
    tools: list[dict[str, Any]] = Field(default_factory=list)
    tool_choice: Any = "auto"


class CompletionBody(SamplingBody):
    """POST /v1/completions."""

    ignored = frozenset({"metadata", "store"})
    refused: ClassVar[Mapping[str, tuple[tuple[Any, ...], str]]] = {
        "suffix": (("",), "this server's models write at the end only"),
        "best_of": ((1,), "ask for n and choose among them"),
    }
    prompt: Annotated[list[Text] | list[list[TokenId]], BeforeValidator(_as_prompts), Field(max_length=MOST_CHOICES)]
    max_tokens: Annotated[int, Field(ge=0, le=_INT32)] = 16
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    logprobs: Annotated[int, Field(ge=0, le=MOST_TOP_LOGPROBS)] | None = None
    echo: bool = False
    add_special_tokens: bool = True


class ResponsesBody(Body):
    """POST /v1/responses: text in, text out."""

    ignored = frozenset({*_HARMLESS, "include", "truncation", "stream_options", "reasoning", "max_tool_calls"})
    refused: ClassVar[Mapping[str, tuple[tuple[Any, ...], str]]] = {
        "previous_response_id": ((), "this server stores no responses; send the whole conversation as input"),
        "conversation": ((), "this server stores no conversations; send the whole conversation as input"),
        "background": ((False,), "this server stores no responses"),
        "prompt": ((), "this server stores no prompts"),
        "tools": (([],), "send them to /v1/chat/completions"),
        "tool_choice": (("auto", "none"), "send tools to /v1/chat/completions"),
    }
    input: str | list[dict[str, Any]]
    instructions: Text | None = None
    max_output_tokens: Count | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[Number, Field(ge=0, le=1)] = 1.0
    top_logprobs: Literal[0] = 0
    text: dict[str, Any] = Field(default_factory=dict)
    stream: bool = False
    user: Text | None = None


class GenerateBody(SamplingBody):
    """POST /generate: a question, for tools that know no chat."""

    prompt: Annotated[Text, Field(min_length=1)]
    max_tokens: Count | None = None


class ScoreBody(Body):
    """POST /v1/score: answers to one conversation, each with its score."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    completions: Annotated[list[Text], Field(min_length=1, max_length=_MOST_SCORED)]
    tools: list[dict[str, Any]] = Field(default_factory=list)
    user: Text | None = None


class TokenizeBody(Body):
    """POST /tokenize: the ids of a text, or of a conversation as the chat template writes it."""

    prompt: Text | None = None
    messages: Annotated[list[dict[str, Any]], Field(min_length=1)] | None = None
    tools: list[dict[str, Any]] = Field(default_factory=list)
    add_special_tokens: bool = True
