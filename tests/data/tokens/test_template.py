"""Under every style of template: the right ids, the right tokens supervised, and no control token out of content."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers

from prefine.data.tokens.decoded import BETWEEN_ANSWERS, marked_example, marked_texts
from prefine.data.tokens.placeholders import FIRST_PLACEHOLDER, MOST_PLACEHOLDERS
from prefine.data.tokens.template import ChatTemplate
from prefine.errors import TemplateError
from prefine.records import Conversation, Demonstration, Message, Preference

QUESTION, ANSWER, OTHER = "My parcel is late. What now?", "It left Lyon this morning.", "Please wait."
EXACT = ["byte-level", "sentencepiece, first"]  # tokenizers that decode to the text they were given
MakeTokenizer = Callable[..., Any]


def said(*turns: str, system: str | None = None) -> Conversation:
    """User and assistant in turn."""
    messages = [Message(role=("user", "assistant")[i % 2], content=text) for i, text in enumerate(turns)]
    return (*([Message(role="system", content=system)] if system else []), *messages)


def pair(prompt: Conversation, chosen: str = ANSWER, rejected: str = OTHER) -> Preference:
    return Preference(prompt=prompt, chosen=chosen, rejected=rejected)


def supervised(template: ChatTemplate, tree: Any) -> list[str]:
    return [piece.text for piece in marked_texts(template, tree) if piece.supervised]


def plain_dicts(messages: Conversation) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in messages]


def upstream_ids(tokenizer: Any, messages: Conversation, *, opened: bool) -> list[int]:
    ids: list[int] = tokenizer.apply_chat_template(
        plain_dicts(messages), add_generation_prompt=opened, tokenize=True, return_dict=False
    )
    return ids


def prompt_of(style: Any, *turns: str) -> Conversation:
    return said(*(turns or (QUESTION,)), system="You work for a parcel service." if style.system else None)


# --- What is supervised ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EXACT)
def test_the_supervised_text_is_the_answer_and_its_end_of_turn(
    style: Any, kind: str, make_tokenizer: MakeTokenizer
) -> None:
    template = ChatTemplate(make_tokenizer(style, kind))
    prompt = prompt_of(style, QUESTION, "One moment.", "Well?")
    tree = template.preference_tree(pair(prompt), 7)
    assert supervised(template, tree) == [style.turn.format(ANSWER), style.turn.format(OTHER)]
    learned = template.demonstration_tree(
        Demonstration(messages=(*prompt, Message(role="assistant", content=ANSWER)), supervise_from=len(prompt)), 3
    )
    assert learned.prompt == tree.prompt
    assert learned.answers[0] == tree.answers[0]
    assert learned.supervised == ([True] * len(tree.answers[0]),)
    assert (tree.row, learned.row) == (7, 3)


@pytest.mark.parametrize("answer", ["m", "end", "s", ">", "d", "I", "im_end", "/s", "return", "</", "<|"])
def test_an_answer_that_is_a_part_of_the_end_of_turn(style: Any, answer: str, make_tokenizer: MakeTokenizer) -> None:
    template = ChatTemplate(make_tokenizer(style))
    ids = template.answer_ids(prompt_of(style), answer)
    assert template.tokenizer.decode(ids) == style.turn.format(answer)
    assert [token for token in ids if token in template.stop_ids] == [ids[-1]]


def test_every_supervised_answer_ends_the_turn_even_where_pad_is_eos(
    style: Any, kind: str, make_tokenizer: MakeTokenizer
) -> None:
    tokenizer = make_tokenizer(style, kind, pad_token=style.eos)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    template = ChatTemplate(tokenizer)
    tree = template.preference_tree(pair(prompt_of(style)), 0)
    end = style.turn.rpartition("}")[2].strip()
    for answer, mask in zip(tree.answers, tree.supervised, strict=True):
        assert mask is None
        assert answer[-1] == tokenizer.convert_tokens_to_ids(end)
        assert answer[-1] in template.stop_ids
    assert tokenizer.eos_token_id in template.stop_ids


def test_a_template_that_ends_no_turn_gets_the_end_of_sequence(make_tokenizer: MakeTokenizer) -> None:
    template = ChatTemplate(make_tokenizer("no end of turn"))
    tree = template.demonstration_tree(Demonstration(messages=said("hello", "there", "hello", "world")), 0)
    assert marked_example(template, tree) == (
        "### user:\nhello\n\n### assistant:\n⟦there</s>⟧\n\n### user:\nhello\n\n### assistant:\n⟦world</s>⟧"
    )


def test_chatml_on_a_tokenizer_without_its_tokens_learns_to_stop_too(
    make_tokenizer: MakeTokenizer, styles: dict[str, Any]
) -> None:
    tokenizer = make_tokenizer("plain")
    tokenizer.chat_template = styles["chatml"].template
    template = ChatTemplate(tokenizer)
    assert template.tokenizer.decode(template.answer_ids(said("hello"), ANSWER)) == f"{ANSWER}</s>"
    assert template.stop_ids == {tokenizer.eos_token_id}


def test_what_only_the_end_of_a_conversation_closes_with_is_not_supervised(make_tokenizer: MakeTokenizer) -> None:
    tree = ChatTemplate(tokenizer := make_tokenizer("phi 3")).preference_tree(pair(said("hello")), 0)
    assert tokenizer.eos_token_id not in [*tree.answers[0], *tree.answers[1]]


def test_a_think_block_of_the_answer_is_supervised_as_control_tokens(make_tokenizer: MakeTokenizer) -> None:
    template = ChatTemplate(tokenizer := make_tokenizer("qwen 3"))
    ids = template.answer_ids(said("hello"), "<think>late</think>Please wait.")
    assert tokenizer.decode(ids) == "<think>\nlate\n</think>\n\nPlease wait.<|im_end|>"
    assert set(tokenizer.convert_tokens_to_ids(["<think>", "</think>"])) < set(ids)


def test_a_turn_that_the_template_closes_otherwise_than_the_first_ends_at_its_last_special_token(
    make_tokenizer: MakeTokenizer,
) -> None:
    tokenizer = make_tokenizer("chatml")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ':' + m['content'] }}{% if m['role'] == 'assistant' %}"
        "{{ '<|im_end|>' + (' (final)' if messages | length > 2 else '') }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    template = ChatTemplate(tokenizer)
    assert tokenizer.decode(template.answer_ids(said("Q", "A", "Q"), ANSWER)) == f"{ANSWER}<|im_end|>"


# --- Answers without a verdict ---------------------------------------------------------------------------------------


def test_answers_of_a_pair_are_the_pairs_tree(style: Any, kind: str, make_tokenizer: MakeTokenizer) -> None:
    """What is scored is token for token what was trained on."""
    template = ChatTemplate(make_tokenizer(style, kind))
    prompt = prompt_of(style, QUESTION, "One moment.", "Well?")
    tree = template.answers_tree(prompt, (ANSWER, OTHER), 7)
    assert tree == template.preference_tree(pair(prompt), 7)
    assert tree.prompt == template.prompt_ids(prompt)
    assert tree.answers == tuple(template.answer_ids(prompt, text) for text in (ANSWER, OTHER))
    assert template.answers_tree(prompt, iter((ANSWER, OTHER)), 7) == tree  # any iterable will do


def test_any_number_of_answers_is_a_tree(make_tokenizer: MakeTokenizer) -> None:
    template = ChatTemplate(make_tokenizer("chatml"))
    whole = template.answers_tree(said("hello"), (ANSWER, OTHER, ANSWER))
    assert (len(whole.answers), whole.supervised, whole.row) == (3, (None, None, None), 0)
    for place, text in enumerate((ANSWER, OTHER, ANSWER)):
        alone = template.answers_tree(said("hello"), (text,))
        assert (alone.prompt, alone.answers) == (whole.prompt, (whole.answers[place],))
    none = template.answers_tree(said("hello"), ())
    assert (none.prompt, none.answers, none.supervised) == (whole.prompt, (), ())


@pytest.mark.parametrize("kind", EXACT)
def test_a_blank_answer_ends_its_turn_and_says_nothing(style: Any, kind: str, make_tokenizer: MakeTokenizer) -> None:
    """Models write that, too, and its score is read at its end of turn."""
    template = ChatTemplate(make_tokenizer(style, kind))
    blank, answer, space = template.answers_tree(prompt_of(style), ("", ANSWER, " \n")).answers
    assert answer == template.answer_ids(prompt_of(style), ANSWER)
    for ids in (blank, space):
        assert [token for token in ids if token in template.stop_ids] == [ids[-1]]
        shown = template.tokenizer.decode(ids)
        assert "".join(shown.split()) == "".join(style.turn.format("").split())


@pytest.mark.parametrize("style_name", ["chatml", "zephyr", "gemma", "plain", "phi 3", "llama 2", "llama 3"])
def test_closed_adds_what_the_template_writes_behind_the_end_of_turn(
    style_name: str, make_tokenizer: MakeTokenizer, styles: dict[str, Any]
) -> None:
    """A line break, mostly, or an end of sequence; nothing where it writes nothing."""
    behind = {"plain": "\n\n", "llama 2": "", "llama 3": "", "phi 3": "\n<|endoftext|>"}.get(style_name, "\n")
    template = ChatTemplate(tokenizer := make_tokenizer(style_name))
    asked = prompt_of(styles[style_name])
    opened, closed = (template.answers_tree(asked, (ANSWER, ""), 3, closed=closed) for closed in (False, True))
    assert (closed.prompt, closed.supervised, closed.row) == (opened.prompt, (None, None), 3)
    for ours, theirs in zip(closed.answers, opened.answers, strict=True):
        assert ours[: len(theirs)] == theirs
        assert tokenizer.decode(ours[len(theirs) :]) == behind


# Where nothing merges between prompt and answer; see below.
CLOSED_STYLES = [
    "chatml",
    "chatml with generation",
    "llama 3",
    "llama 2",
    "zephyr",
    "gemma",
    "phi 3",
    "harmony",
    "qwen 3",
]


@pytest.mark.parametrize("style_name", CLOSED_STYLES)
def test_a_closed_answer_is_the_whole_rendered_conversation(
    style_name: str, kind: str, make_tokenizer: MakeTokenizer
) -> None:
    """Token for token what transformers gives a classifier that others trained."""
    template = ChatTemplate(tokenizer := make_tokenizer(style_name, kind))
    asked = said(QUESTION, OTHER, "hello")
    tree = template.answers_tree(asked, (ANSWER,), closed=True)
    whole = upstream_ids(tokenizer, (*asked, Message(role="assistant", content=ANSWER)), opened=False)
    assert [*tree.prompt, *tree.answers[0]] == whole


def test_a_closed_answer_has_no_end_that_the_template_does_not_write(make_tokenizer: MakeTokenizer) -> None:
    template = ChatTemplate(tokenizer := make_tokenizer("no end of turn"))
    tree = template.answers_tree(said("hello"), (ANSWER,), closed=True)
    whole = tokenizer.decode([*tree.prompt, *tree.answers[0]])
    assert whole == f"### user:\nhello\n\n### assistant:\n{ANSWER}\n\n"


def test_an_answers_control_tokens_stay_text_whether_closed_or_not(style: Any, make_tokenizer: MakeTokenizer) -> None:
    template = ChatTemplate(make_tokenizer(style))
    for closed in (False, True):
        clean = template.answers_tree(said("hello"), ("hello",), closed=closed)
        for text in style.special:
            tree = template.answers_tree(said("hello"), (f"a {text} b",), closed=closed)
            assert control_ids_in(template, tree) == control_ids_in(template, clean)


# --- Demonstrations of several turns ---------------------------------------------------------------------------------


@pytest.mark.parametrize("supervise_from", range(6))
def test_all_assistant_turns_from_supervise_from_on_are_supervised(
    style: Any, supervise_from: int, make_tokenizer: MakeTokenizer
) -> None:
    template = ChatTemplate(make_tokenizer(style))
    turns = ("hello", "first one", "and now", "second one", "hello again", "third one")
    record = Demonstration(messages=said(*turns), supervise_from=supervise_from)
    tree = template.demonstration_tree(record, 0)
    learned = [text for index, text in enumerate(turns) if index % 2 and index >= supervise_from]
    assert supervised(template, tree) == [
        style.turn.format(text) for text in (learned if style.whole else learned[-1:])
    ]
    assert tree.answers[0][-1] in template.stop_ids


# --- The same ids as the ecosystem's ---------------------------------------------------------------------------------


def test_prompt_ids_are_those_of_transformers(style: Any, kind: str, make_tokenizer: MakeTokenizer) -> None:
    template = ChatTemplate(tokenizer := make_tokenizer(style, kind))
    for prompt in (said(QUESTION), prompt_of(style), prompt_of(style, "hello", " hello there\n", "  well?\n\n\tnow ")):
        ids = template.prompt_ids(prompt)
        assert ids == upstream_ids(tokenizer, prompt, opened=True)
        assert template.preference_tree(pair(prompt), 0).prompt == ids


@pytest.mark.parametrize("style_name", ["chatml", "chatml with generation", "llama 3", "llama 2", "zephyr", "gemma"])
def test_prompt_and_answers_are_the_ids_of_the_whole_conversation(
    style_name: str, kind: str, make_tokenizer: MakeTokenizer
) -> None:
    """Where nothing merges at the boundary, that is; these templates end a prompt with a line or a token."""
    template = ChatTemplate(tokenizer := make_tokenizer(style_name, kind))
    messages = said(QUESTION, OTHER, "hello", ANSWER)
    tree = template.demonstration_tree(Demonstration(messages=messages), 0)
    whole = upstream_ids(tokenizer, messages, opened=False)
    ours = [*tree.prompt, *tree.answers[0]]
    if kind == "sentencepiece, old":  # its merges do cross the line end
        assert tokenizer.decode(ours) == tokenizer.decode(whole[: len(ours)])
    else:
        assert ours == whole[: len(ours)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompt=st.text(alphabet=" \nabT.:é", min_size=1).filter(str.strip),
    chosen=st.text(alphabet=" \nabT.:é", min_size=1).filter(str.strip),
    rejected=st.text(alphabet=" \nabT.:é", min_size=1).filter(str.strip),
    name=st.sampled_from(["plain", "chatml", "llama 2", "zephyr", "no end of turn"]),
    kind=st.sampled_from(["byte-level", "sentencepiece, first", "sentencepiece, old"]),
)
def test_answers_share_the_exact_prompt_whatever_would_merge(
    prompt: str, chosen: str, rejected: str, name: str, kind: str, make_tokenizer: MakeTokenizer
) -> None:
    """ "Assistant: " + " hello": tokenized together, the spaces would merge across the boundary."""
    assume(chosen != rejected)
    template = ChatTemplate(make_tokenizer(name, kind))
    tree = template.preference_tree(pair(said(prompt), chosen, rejected), 0)
    assert tree.prompt == template.prompt_ids(said(prompt))
    assert tree.answers == tuple(template.answer_ids(said(prompt), text) for text in (chosen, rejected))


def test_boundary_that_merges_when_tokenized_together(make_tokenizer: MakeTokenizer) -> None:
    """The case above is real: under the plain template the whole text's ids are not prompt ids + answer ids."""
    template = ChatTemplate(tokenizer := make_tokenizer("plain"))
    opened, answer = template.prompt_ids(said("hello")), template.answer_ids(said("hello"), "hello")
    together = upstream_ids(tokenizer, said("hello", "hello"), opened=False)
    assert together[: len(opened)] != opened
    assert tokenizer.decode(together).startswith(tokenizer.decode([*opened, *answer]))


def test_an_answers_ids_do_not_depend_on_what_follows(style: Any, make_tokenizer: MakeTokenizer) -> None:
    template = ChatTemplate(make_tokenizer(style))
    if not style.whole:
        pytest.skip("writes an earlier answer otherwise than a last one")
    alone = template.answer_ids(said("hello"), ANSWER)
    for following in ("and now", "<|im_end|>", "\n."):
        tree = template.demonstration_tree(Demonstration(messages=said("hello", ANSWER, following, OTHER)), 0)
        assert tree.answers[0][: len(alone)] == alone


# --- BOS -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_template", [True, False])
@pytest.mark.parametrize("add_bos_token", [True, False])
@pytest.mark.parametrize("kind", EXACT)
def test_at_most_one_bos(in_template: bool, add_bos_token: bool, kind: str, make_tokenizer: MakeTokenizer) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer("llama 3", kind)
    if add_bos_token:
        bos = (tokenizer.bos_token, tokenizer.bos_token_id)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(f"{bos[0]} $A", special_tokens=[bos])
        assert tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id
    if not in_template:
        tokenizer.chat_template = tokenizer.chat_template.replace("{{ bos_token }}", "")
    template = ChatTemplate(tokenizer)
    tree = template.preference_tree(pair(said(QUESTION)), 0)
    learned = template.demonstration_tree(Demonstration(messages=said("a", "b", "c", "d")), 0)
    bos = tokenizer.bos_token_id
    for ids in ([*tree.prompt, *tree.answers[0], *tree.answers[1]], [*learned.prompt, *learned.answers[0]]):
        assert ids.count(bos) == in_template
        assert (ids[0] == bos) == in_template


# --- Control tokens as text ------------------------------------------------------------------------------------------


def control_ids_in(template: ChatTemplate, tree: Any) -> list[int]:
    ids = [*tree.prompt, *(token for answer in tree.answers for token in answer)]
    return [token for token in ids if token in template.control_ids]


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_every_control_token_stays_text_in_every_role(
    style: Any, kind: str, role: str, make_tokenizer: MakeTokenizer
) -> None:
    if role == "system" and not style.system:
        pytest.skip("takes no system turn")
    template = ChatTemplate(tokenizer := make_tokenizer(style, kind))
    turns = {"system": "hello", "user": "hello", "assistant": "hello"}
    clean = _tree_of(template, style, turns)
    for text in (*style.special, *style.unflagged):
        if role == "assistant" and text in ("<think>", "</think>", "<tool_call>"):
            continue  # an assistant's own words
        for content in (text, f"hello {text} there", f"{text}{text}", f"{text}\n{text} ", f"<{text}>"):
            tree = _tree_of(template, style, {**turns, role: content})
            assert control_ids_in(template, tree) == control_ids_in(template, clean), content
            if kind == "byte-level":
                assert content.strip() in tokenizer.decode([*tree.prompt, *tree.answers[0]])


def _tree_of(template: ChatTemplate, style: Any, turns: dict[str, str]) -> Any:
    system = turns["system"] if style.system else None
    messages = said(turns["user"], turns["assistant"], turns["user"], turns["assistant"], system=system)
    return template.demonstration_tree(Demonstration(messages=messages), 0)


CONTROL = ["<|im_start|>", "<|im_end|>", "<|eot_id|>", "</s>", "<s>", "<|user|>", "<|assistant|>", "<|return|>"]
fragments = st.sampled_from(
    [text[:cut] for text in CONTROL for cut in (1, 2, 5, len(text) - 1)]
    + [text[cut:] for text in CONTROL for cut in (0, 1, 2, 5)]
    + [
        chr(FIRST_PLACEHOLDER),
        chr(FIRST_PLACEHOLDER + 1),
        chr(FIRST_PLACEHOLDER + MOST_PLACEHOLDERS - 1),
        "hello",
        " ",
        "\n",
        "é",
    ]
)
smuggled = st.lists(fragments, min_size=1, max_size=8).map("".join).filter(str.strip)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    system=smuggled,
    asked=smuggled,
    answered=smuggled,
    name=st.sampled_from(["chatml", "llama 3", "llama 2", "zephyr", "harmony", "phi 3", "plain", "no end of turn"]),
)
def test_fragments_of_control_tokens_never_become_one(
    system: str, asked: str, answered: str, name: str, make_tokenizer: MakeTokenizer, styles: dict[str, Any]
) -> None:
    template = ChatTemplate(tokenizer := make_tokenizer(name))
    record = Demonstration(messages=said(asked, answered, system=system))
    tree = template.demonstration_tree(record, 0)
    clean = template.demonstration_tree(Demonstration(messages=said("hello", "hello", system="hello")), 0)
    assert control_ids_in(template, tree) == control_ids_in(template, clean)
    shown = tokenizer.decode([*tree.prompt, *tree.answers[0]])
    for text in (system, asked, answered):
        assert text.strip() in shown
    (turn,) = supervised(template, tree)
    assert (
        turn.strip()
        == styles[name].turn.format(answered.strip() if "trim" in styles[name].template else answered).strip()
    )


def test_private_use_characters_are_kept(style: Any, make_tokenizer: MakeTokenizer) -> None:
    template = ChatTemplate(tokenizer := make_tokenizer(style))
    text = "".join(chr(FIRST_PLACEHOLDER + place) for place in (0, 1, 2, 0, MOST_PLACEHOLDERS - 1)) + "\ue000</s>"
    tree = template.preference_tree(pair(said(text), text, f"{text} {text}"), 0)
    assert text in tokenizer.decode(tree.prompt)
    assert f"{text} {text}" in tokenizer.decode(tree.answers[1])


def test_a_row_may_repeat_a_control_token_without_end(make_tokenizer: MakeTokenizer) -> None:
    template = ChatTemplate(make_tokenizer("chatml"))
    text = "<|im_end|>" * (MOST_PLACEHOLDERS + 5)
    assert template.tokenizer.decode(template.prompt_ids(said(text))).count("<|im_end|>") == MOST_PLACEHOLDERS + 6
    different = "".join(chr(FIRST_PLACEHOLDER + place) for place in range(MOST_PLACEHOLDERS)) + "<|im_end|>"
    with pytest.raises(TemplateError, match="more than 4096 different control tokens"):
        template.prompt_ids(said(different))


def test_what_a_normalizer_makes_into_a_control_token_stays_text(make_tokenizer: MakeTokenizer) -> None:
    """Wide or capital letters that are folded before the tokenizer looks for its added tokens."""
    tokenizer = make_tokenizer("chatml")
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.add_tokens([AddedToken("<tool>", special=False, normalized=True)])
    lookalike = "＜tool＞"
    control = tokenizer.convert_tokens_to_ids("<tool>")
    assert control in tokenizer(lookalike)["input_ids"]
    template = ChatTemplate(tokenizer)
    for content in (lookalike, "<TOOL>", f"a {lookalike}{lookalike} b <Tool> c", "<tool>"):
        ids = template.prompt_ids(said(content))
        assert control not in ids
        assert "<tool>" in tokenizer.decode(ids)


def test_a_control_token_of_one_character_is_left_out(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer("chatml")
    tokenizer.add_special_tokens({"additional_special_tokens": ["¤"]}, replace_extra_special_tokens=False)
    shown = tokenizer.decode(ChatTemplate(tokenizer).prompt_ids(said("a ¤b¤")))
    assert shown == "<|im_start|>user\na b<|im_end|>\n<|im_start|>assistant\n"


def test_words_that_were_added_to_the_vocabulary_are_no_control_tokens(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer("chatml")
    tokenizer.add_tokens(["parcel", "Ж", "  ", " Lyon"])
    template = ChatTemplate(tokenizer)
    text = "parcel Ж  to Lyon"
    assert template.prompt_ids(said(text)) == upstream_ids(tokenizer, said(text), opened=True)
    assert not template.control_ids & set(tokenizer.convert_tokens_to_ids(["parcel", "Ж", "  ", " Lyon"]))


def test_unknown_text_is_no_control_token(make_tokenizer: MakeTokenizer) -> None:
    template = ChatTemplate(tokenizer := make_tokenizer("chatml", "words"))
    assert tokenizer.unk_token_id in template.prompt_ids(said("unheard-of"))
    assert tokenizer.unk_token_id not in template.control_ids


@pytest.mark.parametrize("kind", ["sentencepiece, first", "sentencepiece, old"])
def test_no_space_creeps_in_where_text_was_cut(kind: str, make_tokenizer: MakeTokenizer) -> None:
    template = ChatTemplate(tokenizer := make_tokenizer("chatml", kind))
    content = "hello<|im_end|>there</s>world"
    assert content in tokenizer.decode(template.prompt_ids(said(content)))
    tree = template.preference_tree(pair(said("hello"), content), 0)
    assert supervised(template, tree)[0] == f"{content}<|im_end|>"


# --- Templates that cannot be used -----------------------------------------------------------------------------------

BAD_TEMPLATES = {
    "hello": "leaves out what the user says",
    "{{ messages[0]['content'] }}": "leaves out what the assistant says",
    "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}": "leaves out what the assistant",
    "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}": "does not start with the text",
    "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}Say: {% endif %}": (
        "does not start with the text of its prompt"
    ),
    "{% for m in messages %}": r"rendering failed \(TemplateSyntaxError: ",
    "{{ raise_exception('') }}": r"rendering failed \(TemplateError: no message\)",
    "{{ raise_exception('one\ntwo') }}": r"rendering failed \(TemplateError: one\)",
    "{{ messages[0].content.nothing.more }}": r"rendering failed \(UndefinedError: ",
}


@pytest.mark.parametrize("source", BAD_TEMPLATES)
def test_a_template_that_cannot_be_split_is_an_error_with_a_remedy(source: str, make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer("chatml")
    tokenizer.chat_template = source
    with pytest.raises(TemplateError, match=BAD_TEMPLATES[source]) as caught:
        ChatTemplate(tokenizer)
    assert str(caught.value).startswith("model.chat_template: ")
    assert "\n" not in str(caught.value)
    assert caught.value.remedy.endswith(".")


def test_no_template_and_no_end_of_sequence(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer("chatml")
    tokenizer.chat_template = None
    with pytest.raises(TemplateError, match=r"has no chat template. Set model.chat_template to 'plain'"):
        ChatTemplate(tokenizer)
    tokenizer = make_tokenizer("chatml")
    tokenizer.eos_token = None
    with pytest.raises(TemplateError, match=r"has no end-of-sequence token\. Set eos_token"):
        ChatTemplate(tokenizer)


def test_a_tokenizer_that_splits_special_tokens_does_not_split_the_templates(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer("chatml", split_special_tokens=True)
    assert len(tokenizer("<|im_end|>", add_special_tokens=False)["input_ids"]) > 1
    template, usual = ChatTemplate(tokenizer), ChatTemplate(make_tokenizer("chatml"))
    assert template.preference_tree(pair(said("hello")), 0) == usual.preference_tree(pair(said("hello")), 0)


def test_a_refused_system_turn_says_so_and_a_lost_one_is_refused(
    make_tokenizer: MakeTokenizer, styles: dict[str, Any]
) -> None:
    template = ChatTemplate(make_tokenizer("gemma"))
    with pytest.raises(TemplateError, match="System role not supported"):
        template.prompt_ids(said("hello", system="Be kind."))
    tokenizer = make_tokenizer("chatml")
    tokenizer.chat_template = tokenizer.chat_template.replace("in messages", "in messages if m['role'] != 'system'")
    template = ChatTemplate(tokenizer)
    assert template.prompt_ids(said("hello")) == ChatTemplate(make_tokenizer("chatml")).prompt_ids(said("hello"))
    for refused in (
        lambda: template.prompt_ids(said("hello", system="Be kind.")),
        lambda: template.answer_ids(said("hello", system="Be kind."), "A"),
        lambda: template.preference_tree(pair(said("hello", system="Be kind.")), 0),
        lambda: template.demonstration_tree(Demonstration(messages=said("a", "b", system="Be kind.")), 0),
    ):
        with pytest.raises(TemplateError, match=r"leaves out system turns\. Set model\.chat_template"):
            refused()


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('touch CANARY') }}",
        "{{ self.__init__.__globals__.__builtins__.open('CANARY', 'w') }}",
        "{{ lipsum.__globals__['os'].system('touch CANARY') }}",
        "{{ namespace.__init__.__globals__['__builtins__']['open']('CANARY', 'w') }}",
        "{{ (messages | attr('__class__')).__base__.__subclasses__() }}",
        "{{ strftime_now.__globals__['__builtins__']['open']('CANARY', 'w') }}",
        "{{ raise_exception.__globals__['__builtins__']['__import__']('os').system('touch CANARY') }}",
        "{{ '%s'.format.__self__.__class__.__mro__ }}{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{{ messages.append({'role': 'user', 'content': 'more'}) }}",
        "{% include 'CANARY' %}",
    ],
)
def test_a_hostile_template_reaches_nothing(attack: str, tmp_path: Path, make_tokenizer: MakeTokenizer) -> None:
    canary = tmp_path / "canary"
    tokenizer = make_tokenizer("chatml")
    tokenizer.chat_template = attack.replace("CANARY", str(canary)) + tokenizer.chat_template
    with pytest.raises(TemplateError, match="rendering failed"):
        ChatTemplate(tokenizer)
    assert not canary.exists()


def test_a_template_cannot_count_for_ever(make_tokenizer: MakeTokenizer) -> None:
    """See test_rendering.py for all the ways to try."""
    tokenizer = make_tokenizer("chatml")
    tokenizer.chat_template = "{% for i in range(10 ** 9) %}x{% endfor %}" + tokenizer.chat_template
    with pytest.raises(TemplateError, match="rendering was stopped"):
        ChatTemplate(tokenizer)


# --- The fingerprint -------------------------------------------------------------------------------------------------


def test_the_fingerprint_follows_whatever_changes_ids_and_nothing_else(make_tokenizer: MakeTokenizer) -> None:
    def fingerprint(change: Callable[[Any], None]) -> str:
        tokenizer = make_tokenizer("plain", pad_token="</s>")
        change(tokenizer)
        return ChatTemplate(tokenizer).fingerprint

    def padded(tokenizer: Any) -> None:
        tokenizer(["a", "a b c"], padding=True, truncation=True, max_length=5)

    same = fingerprint(lambda tokenizer: None)
    assert fingerprint(padded) == same
    changes: list[Callable[[Any], Any]] = [
        lambda t: setattr(t, "chat_template", t.chat_template.replace("\\n\\n", "\\n")),
        lambda t: t.add_special_tokens({"eos_token": "<end>"}),
        lambda t: t.add_tokens(["<tool>"]),
        lambda t: setattr(t.backend_tokenizer, "normalizer", normalizers.Lowercase()),
    ]
    assert len({same, *(fingerprint(change) for change in changes)}) == 1 + len(changes)


def test_padding_counts_only_where_a_template_writes_it(make_tokenizer: MakeTokenizer) -> None:
    """A model with score heads gets another padding token when it is loaded: its run's rows stay the same."""

    def fingerprint(pad: str | None, extra: str) -> str:
        tokenizer = make_tokenizer("plain", pad_token="</s>")
        tokenizer.pad_token = pad
        tokenizer.chat_template += extra
        return ChatTemplate(tokenizer).fingerprint

    assert fingerprint("</s>", "") == fingerprint(None, "")
    assert fingerprint("</s>", "{% set x = pad_token %}") != fingerprint(None, "{% set x = pad_token %}")


# --- Marking ---------------------------------------------------------------------------------------------------------


def test_marks_stand_around_what_is_supervised(make_tokenizer: MakeTokenizer) -> None:
    for kind in EXACT:
        template = ChatTemplate(make_tokenizer("llama 2", kind))
        tree = template.preference_tree(pair(said("hello")), 0)
        shown = f"<s>[INST] hello [/INST]⟦ {ANSWER} </s>⟧\n— or —\n⟦ {OTHER} </s>⟧"
        assert marked_example(template, tree) == shown
        assert marked_example(template, tree, "", "") == shown.replace("⟦", "").replace("⟧", "")
        assert BETWEEN_ANSWERS in marked_texts(template, tree)
