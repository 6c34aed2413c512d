"""Every field of OpenAI's API is honoured, ignored by name, or refused with a reason; no other field is taken."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types import completion_create_params as text
from openai.types.chat import completion_create_params as chat
from openai.types.responses import response_create_params as responses
from pydantic import ValidationError

from prefine.serving import schema
from prefine.serving.schema import Body, ChatBody, CompletionBody, ResponsesBody, ScoreBody, TokenizeBody
from prefine.web.errors import ApiError

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}]}
# Fields of other products under the same name.
OTHERS = {"access_programs", "background_options", "context_management", "image"}


@pytest.mark.parametrize(
    ("body", "theirs"),
    [
        (ChatBody, chat.CompletionCreateParamsBase),
        (CompletionBody, text.CompletionCreateParamsBase),
        (ResponsesBody, responses.ResponseCreateParamsBase),
    ],
)
def test_every_field_of_openais_client_is_known(body: type[Body], theirs: Any) -> None:
    known = {*body.model_fields, *body.ignored, *body.refused}
    assert set(theirs.__annotations__) - known <= OTHERS


def test_null_is_as_if_the_field_were_not_there() -> None:
    fields = {name: None for name in ChatBody.model_fields if name != "messages"}
    assert ChatBody.model_validate(CHAT | fields) == ChatBody.model_validate(CHAT)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"audio": {"voice": "alloy"}}, "text only"),
        ({"functions": [{"name": "f"}]}, "send tools"),
        ({"modalities": ["text", "audio"]}, "text only"),
        ({"temprature": 1}, "did you mean temperature?"),
        ({"qqqq": 1}, "remove it"),
        ({"stream_options": {"usage": True}}, "no such field"),
    ],
)
def test_what_would_be_dropped_silently_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ApiError, match=says.replace("?", r"\?")) as refused:
        ChatBody.model_validate(CHAT | changes).require_supported()
    assert refused.value.status == 400


@pytest.mark.parametrize(
    "changes", [{"modalities": ["text"]}, {"functions": []}, {"store": True}, {"function_call": "none"}]
)
def test_what_changes_nothing_is_taken(changes: dict[str, Any]) -> None:
    ChatBody.model_validate(CHAT | changes).require_supported()


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
        *((wrong, None) for wrong in ([], [1, "a"], [[1], "a"], {}, 3, [True], [[-1]], [["a"]], [None])),
    ],
)
def test_prompts_are_texts_or_token_ids(given: Any, taken: Any) -> None:
    if taken is not None:
        assert CompletionBody(prompt=given).prompt == taken
    else:
        with pytest.raises(ValidationError):
            CompletionBody(prompt=given)


@pytest.mark.parametrize(
    "changes",
    [
        *({"temperature": value} for value in (-0.1, 2.1, float("nan"), "1", True)),
        *({"n": value} for value in (0, 129, 1.5, True)),
        *({"stop": value} for value in ("", [""], ["x"] * 17, "x" * 257, "\ud800", 3)),
        *(
            {"logit_bias": value}
            for value in ({"a": 1}, {"-1": 1}, {"1": 101}, {"9" * 30: 1}, {"0" * 5000: 1}, {"5": 1, "05": 1}, [1])
        ),
        *({"seed": value} for value in (2**63, 1.5)),
        {"max_tokens": 0},
        {"top_logprobs": 21},
        {"stream": "yes"},
    ],
)
def test_values_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ChatBody.model_validate(CHAT | changes)


USER = {"role": "user", "content": "x"}
MANY = 100_000


@pytest.mark.parametrize(
    ("body", "fields", "errors"),
    [
        (ChatBody, {"messages": [1] * MANY}, 1),
        (ChatBody, {"messages": [USER] * MANY}, 1),
        (ChatBody, CHAT | {"tools": [1] * MANY}, 1),
        (ChatBody, CHAT | {"stop": [1] * MANY}, 1),
        (ChatBody, CHAT | {"logit_bias": dict.fromkeys(map(str, range(MANY)), "x")}, 1),
        # One for each of the two kinds of lists that a prompt may be.
        (CompletionBody, {"prompt": [-1] * MANY}, 2),
        (CompletionBody, {"prompt": [[-1]] * MANY}, 2),
        (CompletionBody, {"prompt": ["\ud800"] * MANY}, 2),
        (CompletionBody, {"prompt": [1] * 2 * 2**18}, 1),
        (ResponsesBody, {"input": [1] * MANY}, 2),
        (ResponsesBody, {"input": "x", "metadata": dict.fromkeys(map(str, range(MANY)), 1)}, 1),
        (ScoreBody, CHAT | {"completions": [1] * MANY}, 1),
        (TokenizeBody, {"messages": [1] * MANY}, 1),
    ],
)
def test_a_list_is_refused_at_its_first_fault(body: type[Body], fields: dict[str, Any], errors: int) -> None:
    with pytest.raises(ValidationError) as refused:
        body.model_validate(fields)
    assert refused.value.error_count() == errors


def test_metadata_is_text() -> None:
    with pytest.raises(ValidationError):
        ResponsesBody.model_validate({"input": "x", "metadata": {"a": float("nan")}})


def test_the_name_of_a_long_unknown_field_is_cut_before_it_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    monkeypatch.setattr(schema, "get_close_matches", lambda name, known, n: compared.append(name) or [])
    with pytest.raises(ApiError) as refused:
        ChatBody.model_validate(CHAT | {"x" * MANY: 1}).require_supported()
    assert compared == [refused.value.param] == ["x" * 100]
