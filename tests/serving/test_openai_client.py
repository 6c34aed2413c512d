"""OpenAI's own client gets from this server what it gets from OpenAI's."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from openai import OpenAI

ASK: list[Any] = [{"role": "user", "content": "Say something."}]
# The control token that ends a turn: with this bias it comes at once.
END = 257


def test_models(client: OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == "tiny"
    assert client.models.retrieve("tiny") == model
    with pytest.raises(openai.NotFoundError, match="no model 'gpt'"):
        client.models.retrieve("gpt")


def test_chat(client: OpenAI) -> None:
    done = client.chat.completions.create(model="tiny", messages=ASK, max_tokens=7, seed=3, user="someone")
    (choice,) = done.choices
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason == "length"
    assert done.usage is not None
    assert done.usage.completion_tokens == 7
    assert done.usage.total_tokens == done.usage.prompt_tokens + 7
    again = client.chat.completions.create(model="tiny", messages=ASK, max_completion_tokens=7, seed=3)
    assert again.choices[0].message.content == choice.message.content


def test_one_token(client: OpenAI) -> None:
    done = client.chat.completions.create(model="tiny", messages=ASK, max_tokens=1)
    assert done.usage is not None
    assert (done.choices[0].finish_reason, done.usage.completion_tokens) == ("length", 1)


def test_an_answer_that_ends_itself(client: OpenAI) -> None:
    done = client.chat.completions.create(
        model="tiny", messages=ASK, temperature=0, logit_bias={str(END): 100}, logprobs=True
    )
    (choice,) = done.choices
    assert (choice.message.content, choice.finish_reason) == ("", "stop")
    assert choice.logprobs is not None
    assert choice.logprobs.content == []  # the token that ends the turn is no part of the answer


def test_several_choices_differ_and_each_has_a_seed_of_its_own(client: OpenAI) -> None:
    done = client.chat.completions.create(model="tiny", messages=ASK, n=3, seed=5, max_tokens=12)
    assert [choice.index for choice in done.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in done.choices]
    assert len(set(texts)) == 3
    second = client.chat.completions.create(model="tiny", messages=ASK, seed=6, max_tokens=12)
    assert second.choices[0].message.content == texts[1]


def test_without_a_seed_answers_differ(client: OpenAI) -> None:
    texts = {
        client.chat.completions.create(model="tiny", messages=ASK, max_tokens=12).choices[0].message.content
        for _ in range(3)
    }
    assert len(texts) == 3


def test_log_probabilities(client: OpenAI) -> None:
    done = client.chat.completions.create(
        model="tiny", messages=ASK, max_tokens=4, temperature=0, logprobs=True, top_logprobs=3
    )
    (choice,) = done.choices
    assert choice.logprobs is not None
    tokens = choice.logprobs.content
    assert tokens is not None
    assert len(tokens) == 4
    for token in tokens:
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].logprob == token.logprob  # greedy takes the likeliest
        assert [each.logprob for each in token.top_logprobs] == sorted(
            (each.logprob for each in token.top_logprobs), reverse=True
        )
    assert b"".join(bytes(token.bytes or []) for token in tokens).decode(errors="replace") == choice.message.content


def test_a_stop_text(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="tiny", messages=ASK, max_tokens=40, seed=8).choices[0].message.content
    assert whole is not None
    stop = next(letter for letter in whole[1:] if letter != "\ufffd" and letter.isprintable())
    cut = client.chat.completions.create(model="tiny", messages=ASK, max_tokens=40, seed=8, stop=stop)
    assert cut.choices[0].message.content == whole[: whole.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


def test_a_stream_is_the_same_text(client: OpenAI) -> None:
    settings: dict[str, Any] = {"model": "tiny", "messages": ASK, "max_tokens": 30, "seed": 4, "n": 2}
    whole = client.chat.completions.create(**settings)
    texts = ["", ""]
    reasons: dict[int, str] = {}
    usage = None
    for chunk in client.chat.completions.create(**settings, stream=True, stream_options={"include_usage": True}):
        assert chunk.object == "chat.completion.chunk"
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason is not None:
                reasons[choice.index] = choice.finish_reason
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}
    assert usage is not None
    assert whole.usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens


def test_text_completions_of_several_prompts(client: OpenAI) -> None:
    done = client.completions.create(model="tiny", prompt=["a", "b"], n=2, max_tokens=3, seed=1, echo=True)
    assert [choice.index for choice in done.choices] == [0, 1, 2, 3]
    assert [choice.text[0] for choice in done.choices] == ["a", "a", "b", "b"]
    assert done.usage is not None
    assert done.usage.prompt_tokens == 2
    ids = client.completions.create(model="tiny", prompt=[ord("a") - 33], n=2, max_tokens=3, seed=1)
    assert [choice.text for choice in ids.choices] == [choice.text[1:] for choice in done.choices[:2]]


def test_echo_scores_a_prompt_as_lm_eval_asks_for_it(client: OpenAI) -> None:
    prompt = [70, 71, 72, 73]
    done = client.completions.create(model="tiny", prompt=prompt, echo=True, logprobs=1, max_tokens=1, temperature=0)
    found = done.choices[0].logprobs
    assert found is not None
    assert found.tokens is not None and found.token_logprobs is not None and found.top_logprobs is not None
    assert found.tokens[:4] == [chr(33 + token) for token in prompt]
    assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == 5
    assert found.token_logprobs[0] is None
    none = client.completions.create(model="tiny", prompt=prompt, echo=True, logprobs=1, max_tokens=0)
    scored = none.choices[0].logprobs
    assert scored is not None and scored.token_logprobs is not None
    assert scored.token_logprobs[1:] == pytest.approx(found.token_logprobs[1:4], abs=1e-5)
    # What the model gives the fourth token after three is what echo says of it.
    before = client.completions.create(
        model="tiny", prompt=prompt[:3], logprobs=1, max_tokens=1, temperature=0, logit_bias={str(prompt[3]): 100}
    ).choices[0]
    assert before.text == found.tokens[3]
    assert before.logprobs is not None and before.logprobs.token_logprobs is not None
    assert before.logprobs.token_logprobs[0] == pytest.approx(found.token_logprobs[3], abs=1e-5)


def test_a_streamed_text_completion(client: OpenAI) -> None:
    settings: dict[str, Any] = {
        "model": "tiny",
        "prompt": "abc",
        "max_tokens": 20,
        "seed": 2,
        "logprobs": 2,
        "echo": False,
    }
    for change in ({}, {"logprobs": None}, {"logprobs": None, "echo": True}):
        fields = {**settings, **change}
        whole = client.completions.create(**fields).choices[0]
        parts = [chunk.choices[0] for chunk in client.completions.create(**fields, stream=True)]
        assert "".join(part.text for part in parts) == whole.text
        assert parts[-1].finish_reason == whole.finish_reason
        if fields["logprobs"] is not None:
            assert whole.logprobs is not None
            joined = {
                name: [each for part in parts for each in getattr(part.logprobs, name)]
                for name in ("tokens", "token_logprobs", "text_offset")
            }
            assert joined["tokens"] == whole.logprobs.tokens
            assert joined["text_offset"] == whole.logprobs.text_offset
            assert joined["token_logprobs"] == pytest.approx(whole.logprobs.token_logprobs, abs=1e-5)


def test_responses(client: OpenAI) -> None:
    done = client.responses.create(model="tiny", input="Hello", instructions="Be brief.", max_output_tokens=5)
    assert done.status == "incomplete"
    assert done.incomplete_details is not None
    assert done.incomplete_details.reason == "max_output_tokens"
    assert done.output_text
    assert done.usage is not None
    assert done.usage.output_tokens == 5
    turns: Any = [
        {"role": "user", "content": [{"type": "input_text", "text": "Hello"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Hi."}]},
        {"role": "user", "content": "And?"},
    ]
    events = list(client.responses.create(model="tiny", input=turns, max_output_tokens=20, temperature=0, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    last = events[-1]
    assert last.type == "response.incomplete"
    assert last.response.output_text == text


def test_json_mode_and_a_schema(client: OpenAI) -> None:
    loose = client.chat.completions.create(
        model="tiny", messages=ASK, max_tokens=300, seed=1, response_format={"type": "json_object"}
    ).choices[0]
    if loose.finish_reason == "stop":
        assert isinstance(json.loads(loose.message.content or ""), dict)
    schema = {
        "type": "object",
        "properties": {"mood": {"enum": ["good", "bad"]}, "n": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["mood", "n"],
        "additionalProperties": False,
    }
    form: Any = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
    for seed in range(3):
        done = client.chat.completions.create(
            model="tiny", messages=ASK, max_tokens=390, seed=seed, response_format=form, n=2
        )
        for choice in done.choices:
            assert choice.finish_reason == "stop"
            found = json.loads(choice.message.content or "")
            assert found.keys() == {"mood", "n"}
            assert found["mood"] in ("good", "bad")
            assert found["n"] in range(1, 10)


@pytest.mark.parametrize(
    ("changes", "kind", "code", "param"),
    [
        ({"model": "gpt-4"}, openai.NotFoundError, "model_not_found", "model"),
        ({"messages": []}, openai.BadRequestError, "invalid_value", "messages"),
        (
            {"messages": [{"role": "user", "content": "x" * 600}]},
            openai.BadRequestError,
            "context_length_exceeded",
            "messages",
        ),
        ({"max_tokens": 500}, openai.BadRequestError, "max_tokens_too_large", "max_tokens"),
        (
            {"max_tokens": 399, "messages": [{"role": "user", "content": "x" * 200}]},
            openai.BadRequestError,
            "context_length_exceeded",
            "messages",
        ),
        ({"temperature": 2.5}, openai.BadRequestError, "invalid_value", "temperature"),
        ({"n": 10_000}, openai.BadRequestError, "invalid_value", "n"),
        ({"top_logprobs": 2}, openai.BadRequestError, "invalid_value", "top_logprobs"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, openai.BadRequestError, None, "tools"),
        ({"tool_choice": "required"}, openai.BadRequestError, "unsupported_parameter", "tool_choice"),
        ({"modalities": ["audio"]}, openai.BadRequestError, "unsupported_parameter", "modalities"),
        ({"response_format": {"type": "xml"}}, openai.BadRequestError, "invalid_value", "response_format.type"),
        ({"logit_bias": {"99999": 1}}, openai.BadRequestError, "invalid_value", "logit_bias"),
        ({"extra_body": {"tempratur": 1}}, openai.BadRequestError, "unknown_parameter", "tempratur"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            openai.BadRequestError,
            "invalid_value",
            "messages[0].content[0].type",
        ),
    ],
)
def test_errors_are_those_that_the_client_knows(
    client: OpenAI, changes: dict[str, Any], kind: type[openai.APIStatusError], code: str | None, param: str
) -> None:
    fields: dict[str, Any] = {"model": "tiny", "messages": ASK, "max_tokens": 4, **changes}
    with pytest.raises(kind) as refused:
        client.chat.completions.create(**fields)
    assert (refused.value.code, refused.value.param) == (code, param)
    assert refused.value.type in ("invalid_request_error", "not_found_error")


def test_fields_that_change_nothing_are_taken(client: OpenAI) -> None:
    harmless: dict[str, Any] = {
        "store": False,
        "metadata": {"a": "b"},
        "service_tier": "auto",
        "parallel_tool_calls": True,
        "reasoning_effort": "low",
        "safety_identifier": "me",
        "prompt_cache_key": "k",
        "extra_body": {"logprobs": None, "stop": None, "audio": None},
    }
    assert client.chat.completions.create(model="tiny", messages=ASK, max_tokens=2, **harmless).choices
