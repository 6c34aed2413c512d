"""Under templates that behave as well-known models' do: tools, reasoning, turns that are rewritten, answers prefilled.

What a row holds is in its tokens, or the row is refused with the field. Nothing is left out silently.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from prefine.data.tokens.decoded import marked_example, marked_texts
from prefine.data.tokens.fitting import fit_answers, fit_record
from prefine.data.tokens.template import ChatTemplate
from prefine.errors import RefusedRowError, TemplateError
from prefine.records import Completion, Conversation, Demonstration, Message, Preference, Record, Vote
from tests.data.model_templates import LLAMA31, MISTRAL, QWEN3, R1

MakeTokenizer = Callable[..., Any]
TOOL = {"type": "function", "function": {"name": "weather", "description": "Says it.", "parameters": {}}}
CALL = {"id": "abcdefgh1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}}


def user(text: str = "hello") -> Message:
    return Message(role="user", content=text)


def assistant(text: str = "hello there", **fields: Any) -> Message:
    return Message(role="assistant", content=text, **fields)


def calling(*calls: dict[str, Any], text: str = "", **fields: Any) -> Message:
    return Message(role="assistant", content=text, tool_calls=calls or (CALL,), **fields)


def result(text: str = "rain") -> Message:
    return Message(role="tool", content=text, name="weather", tool_call_id="abcdefgh1")


def demonstration(*turns: Message, tools: tuple[dict[str, Any], ...] = ()) -> Demonstration:
    return Demonstration(messages=turns, tools=tools)


def learned_texts(template: ChatTemplate, record: Demonstration) -> list[str]:
    return [piece.text for piece in marked_texts(template, template.demonstration_tree(record, 0)) if piece.supervised]


def refused(act: Callable[[], Any]) -> tuple[str, str]:
    with pytest.raises(RefusedRowError) as caught:
        act()
    assert caught.value.remedy.endswith(".")
    return str(caught.value.field), caught.value.problem


# --- Tools -----------------------------------------------------------------------------------------------------------

TOOL_TALK = (user(), calling(), result(), assistant())


@pytest.mark.parametrize(
    ("style", "shown"),
    [
        (
            QWEN3,
            # The call is an earlier turn by now, and has lost its empty thought: it is context.
            '<|im_start|>assistant\n<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call>'
            "<|im_end|>\n<|im_start|>user\n<tool_response>\nrain\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
            "⟦<think>\n\n</think>\n\nhello there<|im_end|>⟧",
        ),
        (
            LLAMA31,
            "<|start_header_id|>user<|end_header_id|>\n\nhello<|eot_id|><|start_header_id|>assistant<|end_header_id|>"
            '\n\n⟦{"name": "weather", "parameters": {"city": "Bern"}}<|eot_id|>⟧<|start_header_id|>ipython'
            '<|end_header_id|>\n\n"rain"<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n'
            "⟦hello there<|eot_id|>⟧",
        ),
        (
            MISTRAL,
            '[INST]hello[/INST]⟦[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Bern"}, "id": "abcdefgh1"}]'
            '</s>⟧[TOOL_RESULTS]"rain"[/TOOL_RESULTS]⟦hello there</s>⟧',
        ),
    ],
)
def test_calls_and_results_are_rendered_and_calls_are_learned(
    style: Any, shown: str, make_tokenizer: MakeTokenizer
) -> None:
    template = ChatTemplate(make_tokenizer(style))
    tree = template.demonstration_tree(demonstration(*TOOL_TALK, tools=(TOOL,)), 0)
    assert marked_example(template, tree).endswith(shown)


@pytest.mark.parametrize("style", [QWEN3, LLAMA31, MISTRAL])
@pytest.mark.parametrize("bare", [False, True])
def test_definitions_are_rendered_for_demonstrations_prompts_and_pairs(
    style: Any, bare: bool, make_tokenizer: MakeTokenizer
) -> None:
    """Also a definition without the wrapper that OpenAI's API has; it is given with it."""
    template = ChatTemplate(tokenizer := make_tokenizer(style))
    tools = (TOOL["function"],) if bare else (TOOL,)
    pair = Preference(prompt=(user(),), chosen="yes", rejected="no", tools=tools)  # type: ignore[arg-type]
    for ids in (
        template.demonstration_tree(demonstration(user(), assistant(), tools=tools), 0).prompt,  # type: ignore[arg-type]
        template.prompt_ids((user(),), tools),  # type: ignore[arg-type]
        template.preference_tree(pair, 0).prompt,
    ):
        shown = tokenizer.decode(list(ids))
        assert '"function":{"name":"weather"' in "".join(shown.split())


@pytest.mark.parametrize("style", [QWEN3, LLAMA31, MISTRAL, R1])
@pytest.mark.parametrize("arguments", [{"city": "Bern"}, '{"city": "Bern"}'])
def test_arguments_are_an_object_or_its_text_as_the_template_wants_them(
    style: Any, arguments: Any, make_tokenizer: MakeTokenizer
) -> None:
    template = ChatTemplate(tokenizer := make_tokenizer(style))
    call = {"id": "abcdefgh1", "name": "weather", "arguments": arguments}  # and without the wrapper
    ids = template.prompt_ids((user(), calling(call), result()))
    assert '{"city": "Bern"}' in tokenizer.decode(ids)


def test_r1_takes_calls_as_text_in_a_turn_without_content(make_tokenizer: MakeTokenizer) -> None:
    template = ChatTemplate(make_tokenizer(R1))
    shown = marked_example(template, template.demonstration_tree(demonstration(*TOOL_TALK), 0))
    assert shown == (
        '<|begin of sentence|><|User|>hello<|Assistant|>⟦<|call|>weather\n{"city": "Bern"}<|end of call|>'
        "<|end of sentence|>⟧<|output|>rain<|end of output|><|Assistant|>⟦hello there<|end of sentence|>⟧"
    )


@pytest.mark.parametrize(
    ("style", "record", "field", "reason"),
    [
        ("chatml", demonstration(user(), assistant(), tools=(TOOL,)), "tools", "writes no tool definitions"),
        (R1, demonstration(user(), assistant(), tools=(TOOL,)), "tools", "writes no tool definitions"),
        ("chatml", demonstration(*TOOL_TALK), "messages[1].tool_calls", "the chat template writes none"),
        (LLAMA31, demonstration(user(), calling(CALL, CALL)), "messages[1].tool_calls", "writes one per turn"),
        (LLAMA31, demonstration(user(), calling(text="Wait.")), "messages[1].content", "text beside tool calls"),
        (
            QWEN3,
            demonstration(user(), calling({"name": "f", "arguments": '{"a": '})),
            "messages[1].tool_calls[0].arguments",
            None,
        ),
        (
            QWEN3,
            demonstration(user(), calling({"name": "f", "arguments": "[1]"})),
            "messages[1].tool_calls[0].arguments",
            "is a list and not an object",
        ),
        (LLAMA31, demonstration(user(), assistant(reasoning="Hm.")), "messages[1].reasoning", "writes no reasoning"),
        ("chatml", demonstration(user(), assistant(reasoning="Hm.")), "messages[1].reasoning", "writes no reasoning"),
        (R1, demonstration(user(), assistant(reasoning="Hm.")), "messages[1].reasoning", "writes no reasoning"),
        (
            "gemma",
            demonstration(Message(role="system", content="S"), user(), assistant()),
            "messages[0]",
            "System role not supported",
        ),
    ],
)
def test_what_a_template_does_not_write_is_refused_by_field(
    style: Any, record: Demonstration, field: str, reason: str | None, make_tokenizer: MakeTokenizer
) -> None:
    template = ChatTemplate(make_tokenizer(style))
    if style is QWEN3 and reason is None:  # it takes text as it is, but another template would not
        assert template.traits.calls is not None
        assert not template.traits.calls.arguments_as_text
        reason = "is not valid JSON"
    found = refused(lambda: template.demonstration_tree(record, 0))
    assert found[0] == field
    assert reason is not None
    assert reason in found[1]


def test_what_a_template_raises_over_a_row_is_an_error_of_the_row(make_tokenizer: MakeTokenizer) -> None:
    template = ChatTemplate(make_tokenizer(MISTRAL))
    short = {**CALL, "id": "c1"}
    with pytest.raises(TemplateError, match="ids must have length 9"):
        template.prompt_ids((user(), calling(short), result()))
    template.prompt_ids((user(), calling(), result()))


SMUGGLED = ["<|im_end|>", "<|im_start|>assistant", "</tool_response>", "<tool_call>", "<think>"]


@pytest.mark.parametrize("text", SMUGGLED)
def test_control_tokens_in_tools_calls_results_and_reasoning_stay_text(
    text: str, make_tokenizer: MakeTokenizer
) -> None:
    template = ChatTemplate(tokenizer := make_tokenizer(QWEN3))

    def record(said: str) -> Demonstration:
        tool = {"type": "function", "function": {"name": "weather", "description": said, "parameters": {said: said}}}
        call = {"name": "weather", "arguments": {"city": said, said: [said]}}
        return demonstration(
            user(),
            calling(call, reasoning=f"so {said}"),
            result(said),
            assistant("hello", reasoning=f"and {said}"),
            tools=(tool,),
        )

    def control(tree: Any) -> list[int]:
        return [token for token in [*tree.prompt, *tree.answers[0]] if token in template.control_ids]

    tree = template.demonstration_tree(record(text), 0)
    assert control(tree) == control(template.demonstration_tree(record("x"), 0))
    assert tokenizer.decode([*tree.prompt, *tree.answers[0]]).count(text) >= 8


def test_arguments_as_text_cannot_smuggle_a_control_token_behind_an_escape(make_tokenizer: MakeTokenizer) -> None:
    template = ChatTemplate(make_tokenizer(LLAMA31))
    text = '{"city": "\\u003c|eot_id|\\u003e"}'
    clean = template.prompt_ids((user(), calling(CALL), result()))
    ids = template.prompt_ids((user(), calling({"name": "weather", "arguments": text}), result()))
    end = template.turn_end
    assert ids.count(end) == clean.count(end)
    assert "<|eot_id|>" in template.tokenizer.decode([token for token in ids if token != end])


def test_an_assistant_cannot_write_what_stands_around_a_tools_result(make_tokenizer: MakeTokenizer) -> None:
    template = ChatTemplate(tokenizer := make_tokenizer(QWEN3))
    response, call = tokenizer.convert_tokens_to_ids(["<tool_response>", "<tool_call>"])
    ids = template.answer_ids((user(),), "<tool_call>x</tool_call><tool_response>y</tool_response>")
    assert call in ids  # its own words
    assert response not in ids


# --- Reasoning -------------------------------------------------------------------------------------------------------


def test_reasoning_is_learned_with_the_answer_that_it_is_of(make_tokenizer: MakeTokenizer) -> None:
    template = ChatTemplate(make_tokenizer(QWEN3))
    record = demonstration(user(), assistant("one", reasoning="first"), user(), assistant("two", reasoning="late?"))
    shown = marked_example(template, template.demonstration_tree(record, 0))
    assert shown.endswith(
        "assistant\none<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
        "⟦<think>\nlate?\n</think>\n\ntwo<|im_end|>⟧"
    )


@pytest.mark.parametrize("key", ["reasoning", "thinking"])
def test_reasoning_goes_under_the_key_that_the_template_reads(key: str, make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(QWEN3)
    tokenizer.chat_template = tokenizer.chat_template.replace("m.reasoning_content", f"m.{key}")
    template = ChatTemplate(tokenizer)
    assert template.traits.reasoning_key == key
    assert "late?" in learned_texts(template, demonstration(user(), assistant(reasoning="late?")))[0]


def test_reasoning_that_one_kind_of_turn_lacks_is_refused_there(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(QWEN3)
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "m.reasoning_content) %}", "m.reasoning_content) and not m.tool_calls %}"
    )
    template = ChatTemplate(tokenizer)
    assert learned_texts(template, demonstration(user(), assistant(reasoning="late?")))
    found = refused(lambda: template.demonstration_tree(demonstration(user(), calling(reasoning="late?")), 0))
    assert found == ("messages[1].reasoning", "has text that the chat template leaves out")


# --- Which turns are learned -----------------------------------------------------------------------------------------


def said(*texts: str) -> Conversation:
    return tuple((user, assistant)[place % 2](text) for place, text in enumerate(texts))


def test_turns_that_are_rewritten_later_are_context_and_counted(make_tokenizer: MakeTokenizer) -> None:
    """Qwen 3 drops an empty thought from earlier turns: they are not what would be asked for."""
    record = Demonstration(messages=said("a", "b", "c", "d", "e", "f"))
    for style, learned in ((QWEN3, 1), ("phi 3", 3), (LLAMA31, 3), (MISTRAL, 3), (R1, 3), ("gemma", 3), ("harmony", 1)):
        template = ChatTemplate(make_tokenizer(style))
        tree, left_out = template.learned(record)
        assert left_out == 3 - learned
        assert len(learned_texts(template, record)) == learned
        assert tree == template.demonstration_tree(record, 0)


def test_steps_of_one_exchange_that_stay_as_they_were_are_learned(make_tokenizer: MakeTokenizer) -> None:
    """Qwen 3 keeps reasoning after the last question, so the call is learned and the exchange before it is context."""
    template = ChatTemplate(make_tokenizer(QWEN3))
    record = demonstration(
        user(), assistant(), user(), calling(reasoning="look"), result(), assistant("dry", reasoning="well")
    )
    texts = learned_texts(template, record)
    assert len(texts) == 2
    assert texts[0].startswith("<think>\nlook\n</think>\n\n<tool_call>")
    assert texts[1] == "<think>\nwell\n</think>\n\ndry<|im_end|>"
    assert template.learned(record)[1] == 1


def test_a_turn_that_is_context_is_never_learned(make_tokenizer: MakeTokenizer) -> None:
    template = ChatTemplate(make_tokenizer("chatml"))
    wrong = assistant("wrong", supervised=False)
    record = demonstration(user(), assistant("one"), user(), wrong, user(), assistant("two"), user(), wrong)
    tree = template.demonstration_tree(record, 0)
    assert learned_texts(template, record) == ["one<|im_end|>", "two<|im_end|>"]
    assert tree.supervised[0] is not None
    assert tree.supervised[0][-1]  # what follows the last learned turn is left out
    assert "wrong" in template.tokenizer.decode(list(tree.answers[0]))


def test_an_answer_that_is_prefilled_is_asked_for_with_it_and_learned_as_conversations_are(
    make_tokenizer: MakeTokenizer,
) -> None:
    """R1: a prompt ends with <think>, but no answer in a conversation begins with it."""
    template = ChatTemplate(tokenizer := make_tokenizer(R1))
    assert template.traits.prefill == "<think>\n"
    asked = tokenizer.decode(template.prompt_ids((user(),)))
    assert asked == "<|begin of sentence|><|User|>hello<|Assistant|><think>\n"
    pair = template.preference_tree(Preference(prompt=(user(),), chosen="yes", rejected="no"), 0)
    assert marked_example(template, pair) == (
        "<|begin of sentence|><|User|>hello<|Assistant|>⟦yes<|end of sentence|>⟧\n— or —\n⟦no<|end of sentence|>⟧"
    )
    assert template.stop_ids == {tokenizer.eos_token_id}


def test_a_prefilled_tag_is_not_cut_in_two(make_tokenizer: MakeTokenizer) -> None:
    """DeepSeek V3.1, thinking: answers are opened with <think>, and written after </think>; both begin with <."""
    tokenizer = make_tokenizer(R1)
    tokenizer.chat_template = tokenizer.chat_template.replace("'<|Assistant|>' + m", "'<|Assistant|></think>' + m")
    template = ChatTemplate(tokenizer)
    tree = template.answers_tree((user(),), ("yes",))
    assert marked_example(template, tree).endswith("<|User|>hello<|Assistant|>⟦</think>yes<|end of sentence|>⟧")


def test_a_prefilled_empty_thought_is_not_learned_twice(make_tokenizer: MakeTokenizer) -> None:
    """Qwen 3 without thinking: the thought is a part of the prompt, and the answer is learned after it."""
    tokenizer = make_tokenizer(QWEN3)
    tokenizer.chat_template = "{% set enable_thinking = false %}" + tokenizer.chat_template
    template = ChatTemplate(tokenizer)
    assert template.traits.prefill == ""
    assert marked_example(template, template.answers_tree((user(),), ("yes",))).endswith(
        "<|im_start|>assistant\n<think>\n\n</think>\n\n⟦yes<|im_end|>⟧"
    )
    with pytest.raises(TemplateError, match="does not start with the text of its prompt"):
        template.demonstration_tree(demonstration(user(), assistant(reasoning="but")), 0)


def test_the_embedded_models_template(embedded_model: Any) -> None:
    """SmolLM2's own: no tools and no reasoning, every turn learned, and unsupervised ones are not."""
    from prefine.models.loading.load import load_tokenizer
    from prefine.models.loading.location import locate_model
    from prefine.recipe.sections import named_model

    name = "embedded:smollm2-135m"
    template = load_tokenizer(locate_model(name), named_model(name))
    record = demonstration(user(), assistant("one", supervised=False), user(), assistant("two"), user(), assistant("3"))
    assert learned_texts(template, record) == ["two<|im_end|>", "3<|im_end|>"]
    assert refused(lambda: template.demonstration_tree(demonstration(*TOOL_TALK), 0))[0] == "messages[1].tool_calls"
    assert refused(lambda: template.prompt_ids((user(),), (TOOL,)))[0] == "tools"
    assert refused(lambda: template.demonstration_tree(demonstration(user(), assistant(reasoning="x")), 0))[0] == (
        "messages[1].reasoning"
    )


# --- What an answer says is written whole, or the row is refused ------------------------------------------------------

THOUGHT = "<think>\nlong reasoning\n</think>\n\n42"


@pytest.mark.parametrize("text", [THOUGHT, "</think>", "<think>late</think>42"])
def test_an_answer_of_which_the_template_leaves_out_a_part_is_refused(text: str, make_tokenizer: MakeTokenizer) -> None:
    template = ChatTemplate(make_tokenizer(R1))
    reason = "has text that the chat template leaves out"
    prompt = (user(),)
    records: list[tuple[str, Record]] = [
        ("messages[1].content", demonstration(user(), assistant(text))),
        ("messages[1].content", demonstration(user(), assistant(text), user(), assistant())),
        ("messages[3].content", demonstration(user(), assistant(), user(), assistant(text))),
        ("chosen", Preference(prompt=prompt, chosen=text, rejected="no")),
        ("rejected", Preference(prompt=prompt, chosen="no", rejected=text)),
        ("completion", Vote(prompt=prompt, completion=text, label=True)),
        ("completion", Completion(prompt=prompt, completion=text)),
    ]
    for field, record in records:
        assert refused(lambda record=record: fit_record(template, record, 500)) == (field, reason)
    pair = records[3][1]
    assert isinstance(pair, Preference)
    assert refused(lambda: template.preference_tree(pair, 0)) == ("chosen", reason)
    # What is scored may say anything, and context is what the template makes of it.
    assert fit_answers(template, prompt, (text,), 500) is not None
    assert template.answer_ids(prompt, text)
    context = assistant(text).model_copy(update={"supervised": False})
    assert fit_record(template, demonstration(user(), context, user(), assistant()), 500) is not None


@pytest.mark.parametrize("style", [QWEN3, LLAMA31, MISTRAL, "chatml", "llama 2", "gemma", "phi 3", "plain"])
@pytest.mark.parametrize("text", [THOUGHT, "<think>late</think>42", "  42 \n", "late</think>42", "a <|im_end|> b"])
def test_an_answer_that_is_written_with_other_white_space_is_learned(
    style: Any, text: str, make_tokenizer: MakeTokenizer
) -> None:
    template = ChatTemplate(make_tokenizer(style))
    assert fit_record(template, demonstration(user(), assistant(text)), 500) is not None
    assert fit_record(template, Preference(prompt=(user(),), chosen=text, rejected="no"), 500) is not None


def test_the_beginning_of_an_answer_may_be_in_what_opens_answers(make_tokenizer: MakeTokenizer) -> None:
    """Qwen 3 Thinking: a thought's tag ends the prompt, and each answer in a conversation begins with it."""
    tokenizer = make_tokenizer("chatml")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{{ '<think>\n' + "
        "m.content.split('</think>')[0].split('<think>')[-1].strip() + '\n</think>\n\n' + "
        "m.content.split('</think>')[-1].strip() }}{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
    )
    template = ChatTemplate(tokenizer)
    found = fit_record(template, demonstration(user(), assistant("<think>late</think>42")), 500)
    assert found is not None
    assert marked_example(template, found.tree).endswith("<think>\n⟦late\n</think>\n\n42<|im_end|>⟧")
    assert refused(lambda: fit_record(template, demonstration(user(), assistant("lost<think>late</think>42")), 500))
