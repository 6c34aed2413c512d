"""Settings become a part of the template, and the plain template begins as the tokenizer's texts do."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import processors
from transformers import AutoTokenizer

from prefine.data.tokens.template import ChatTemplate
from prefine.data.tokens.template_source import PLAIN_TEMPLATE, plain_template, set_defaults
from prefine.recipe.sections import ModelSection
from prefine.records import Message
from tests.data.model_templates import QWEN3

MakeTokenizer = Callable[..., Any]
ASK = (Message(role="user", content="hello"),)


def test_a_setting_holds_in_every_rendering_and_is_saved_with_the_template(
    make_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    tokenizer = make_tokenizer(QWEN3)
    without = ChatTemplate(tokenizer)
    before = without.fingerprint
    set_defaults(tokenizer, {"enable_thinking": False})
    template = ChatTemplate(tokenizer)
    opened = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert tokenizer.decode(template.prompt_ids(ASK)) == opened
    assert tokenizer.decode(template.answers_tree(ASK, ("a",)).prompt) == opened
    assert template.fingerprint != before
    tokenizer.save_pretrained(tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    assert saved.decode(ChatTemplate(saved).prompt_ids(ASK)) == opened
    theirs = saved.apply_chat_template(
        [{"role": "user", "content": "hello"}], add_generation_prompt=True, tokenize=False
    )
    assert theirs == opened
    said = saved.apply_chat_template(  # whoever renders the saved one may still say otherwise
        [{"role": "user", "content": "hello"}], add_generation_prompt=True, tokenize=False, enable_thinking=True
    )
    assert "<think>" not in said


def test_a_later_setting_holds_before_an_earlier_one(make_tokenizer: MakeTokenizer) -> None:
    """A run that goes on from another run's model may set it anew."""
    tokenizer = make_tokenizer(QWEN3)
    set_defaults(tokenizer, {"enable_thinking": False})
    set_defaults(tokenizer, {"enable_thinking": True})
    assert "<think>" not in tokenizer.decode(ChatTemplate(tokenizer).prompt_ids(ASK))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=json_values)
def test_any_json_value_is_the_same_in_a_loop_and_in_a_macro(value: Any, make_tokenizer: MakeTokenizer) -> None:
    """As a rendering with that value; the white space that the template begins with stays, too."""
    source = (
        "\n  {% macro show() %}{{ given | tojson }}{% endmacro %}"
        "{% for m in messages %}{{ m['content'] }}{{ given | tojson }}{{ show() }}{% endfor %}"
        "{% if add_generation_prompt %}{% endif %}"
    )
    tokenizer = make_tokenizer("chatml")
    tokenizer.chat_template = source
    turns = [{"role": "user", "content": "x"}]
    expected = tokenizer.apply_chat_template(turns, tokenize=False, given=value)
    set_defaults(tokenizer, {"given": value})
    assert tokenizer.apply_chat_template(turns, tokenize=False) == expected


def test_a_setting_that_is_not_read_is_a_warning(
    make_tokenizer: MakeTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "prefine"):
        set_defaults(make_tokenizer(QWEN3), {"enable_thinking": True})
        assert not caplog.records
        set_defaults(make_tokenizer("chatml"), {"enable_thinking": True})
    assert [record.getMessage() for record in caplog.records] == [
        "model.template_kwargs: the chat template does not read enable_thinking, so it has no effect"
    ]


def test_templates_by_name_all_get_it(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(QWEN3)
    tokenizer.chat_template = {"default": tokenizer.chat_template, "tool_use": tokenizer.chat_template}
    set_defaults(tokenizer, {"enable_thinking": False})
    template = ChatTemplate(tokenizer)
    for tools in ((), ({"type": "function", "function": {"name": "f"}},)):
        assert tokenizer.decode(template.prompt_ids(ASK, tools)).endswith("<think>\n\n</think>\n\n")


@pytest.mark.parametrize(
    ("given_settings", "said"),
    [
        ({"messages": []}, "messages is set by prefine for every conversation"),
        ({"tools": []}, "tools is set by prefine"),
        ({"add_generation_prompt": True}, "add_generation_prompt is set by prefine"),
        ({"bos_token": "<s>"}, "bos_token is set by prefine"),
        ({"range": 3}, "range is set by prefine"),
        ({"enable thinking": True}, "is not a valid variable name"),
        ({"a": [float("nan")]}, "a holds a number that is not finite"),
        ({"none": 1}, "'none' is not a valid variable name"),
    ],
)
def test_settings_that_would_break_a_rendering_are_refused(given_settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ModelSection(template_kwargs=given_settings)


@pytest.mark.parametrize("writes", [False, True])
def test_the_plain_template_begins_as_the_tokenizers_texts_do(writes: bool, make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer("zephyr")
    if writes:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
        )
    tokenizer.chat_template = plain_template(tokenizer)
    ids = ChatTemplate(tokenizer).prompt_ids(ASK)
    assert ids.count(tokenizer.bos_token_id) == writes
    assert (ids[0] == tokenizer.bos_token_id) == writes
    assert tokenizer.decode(ids) == ("<s>" if writes else "") + "User: hello\n\nAssistant: "
    assert (tokenizer.chat_template == PLAIN_TEMPLATE) == (not writes)
