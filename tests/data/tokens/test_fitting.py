"""Rows that are too long are cut by turns, and what is left renders as any conversation; see pitfalls 49."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefine.data.tokens.decoded import marked_example, marked_texts
from prefine.data.tokens.fitting import Fitted, fit, fit_answers, fit_prompt, fit_record, whole_row
from prefine.data.tokens.store import FitCounts
from prefine.data.tokens.template import ChatTemplate
from prefine.data.tokens.trees import TokenTree
from prefine.records import Completion, Conversation, Demonstration, Message, Preference, Prompt, Record, Vote
from tests.data.model_templates import LLAMA31, MISTRAL, QWEN3, R1

MakeTokenizer = Callable[..., Any]
CALL = {"id": "abcdefgh1", "type": "function", "function": {"name": "f", "arguments": {"a": "b"}}}
TOOL = {"type": "function", "function": {"name": "f", "description": "x", "parameters": {}}}


def user(text: str) -> Message:
    return Message(role="user", content=text)


def assistant(text: str, **fields: Any) -> Message:
    return Message(role="assistant", content=text, **fields)


def system(text: str = "Be kind.") -> Message:
    return Message(role="system", content=text)


@pytest.fixture
def chatml(make_tokenizer: MakeTokenizer) -> ChatTemplate:
    return ChatTemplate(make_tokenizer("chatml"))


def shown(template: ChatTemplate, fitted: Fitted | None) -> str:
    assert fitted is not None
    return marked_example(template, fitted.tree)


# --- By hand ---------------------------------------------------------------------------------------------------------

TALK = (system(), user("one"), assistant("two"), user("three"), assistant("four"), user("five"), assistant("six"))


def test_the_oldest_exchanges_go_and_the_system_turn_stays(chatml: ChatTemplate) -> None:
    whole = whole_row(chatml, Demonstration(messages=TALK))
    cut = fit_record(chatml, Demonstration(messages=TALK), whole.length - 1)
    assert shown(chatml, cut) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nthree<|im_end|>\n<|im_start|>assistant\n"
        "⟦four<|im_end|>⟧\n<|im_start|>user\nfive<|im_end|>\n<|im_start|>assistant\n⟦six<|im_end|>⟧"
    )
    assert cut is not None
    assert (cut.turns_dropped, cut.text_cut, cut.cut) == (2, False, True)
    last = fit_record(chatml, Demonstration(messages=TALK), cut.length - 1)
    assert shown(chatml, last).startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nfive<|im_end|>")
    assert last is not None
    assert last.turns_dropped == 4
    assert fit_record(chatml, Demonstration(messages=TALK), whole.length) == whole


def test_a_call_and_its_result_go_with_their_question(make_tokenizer: MakeTokenizer) -> None:
    template = ChatTemplate(make_tokenizer(LLAMA31))
    called = (user("one"), assistant("", tool_calls=(CALL,)), Message(role="tool", content="r"), assistant("two"))
    record = Demonstration(messages=(system(), *called, *called[:1], assistant("three")), tools=(TOOL,))
    cut = fit_record(template, record, whole_row(template, record).length - 1)
    assert cut is not None
    assert cut.turns_dropped == 4
    assert "ipython" not in shown(template, cut)
    assert '"description": "x"' in shown(template, cut)  # definitions stay


def test_a_lone_question_is_shortened_at_its_start(chatml: ChatTemplate) -> None:
    prompt = (user("late " * 40 + "Where is my parcel? \n"),)
    cut = fit_prompt(chatml, prompt, 24)
    text = shown(chatml, cut)
    assert text.startswith("<|im_start|>user\n")
    assert text.endswith("Where is my parcel? \n<|im_end|>\n<|im_start|>assistant\n")
    assert cut is not None
    assert (cut.turns_dropped, cut.text_cut) == (0, True)
    assert 20 < cut.length <= 24
    assert text.startswith("<|im_start|>user\nlate ")  # whole words
    (asked,) = (user("late" * 40),)
    unspaced = fit_prompt(chatml, (asked,), 24)
    assert unspaced is not None
    assert unspaced.length == 24
    header = len(chatml.prompt_ids((user("x"),)))
    assert fit_prompt(chatml, prompt, header - 1) is None  # nothing of it would be left


def test_an_answer_is_never_cut(chatml: ChatTemplate) -> None:
    pair = Preference(prompt=(user("hello " * 9),), chosen="late " * 20, rejected="no")
    answer = len(chatml.answer_ids(pair.prompt, pair.chosen))
    assert fit_record(chatml, pair, answer) is None
    assert fit_record(chatml, pair, answer + 2) is None  # no room for the role headers
    cut = fit_record(chatml, pair, answer + 15)
    assert cut is not None
    assert list(cut.tree.answers[0]) == chatml.answer_ids(pair.prompt, pair.chosen)


def test_where_the_last_answer_is_too_long_the_turns_before_it_are_learned(chatml: ChatTemplate) -> None:
    record = Demonstration(messages=(*TALK[:5], user("more"), assistant("late " * 100)))
    cut = fit_record(chatml, record, 60)
    assert shown(chatml, cut).endswith("three<|im_end|>\n<|im_start|>assistant\n⟦four<|im_end|>⟧")
    assert cut is not None
    assert cut.turns_dropped == 2  # the last exchange alone: the others fit
    only_the_last = record.model_copy(update={"supervise_from": 5})
    assert fit_record(chatml, only_the_last, 60) is None


@pytest.mark.parametrize(("room", "most"), [(5, 10), (60, 10)])
def test_the_work_of_cutting_a_long_talk_grows_with_what_is_kept(
    room: int, most: int, chatml: ChatTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In turns rendered, for each exchange of the talk; 2,319 and 67 before."""
    talk = tuple(turn for _ in range(100) for turn in (user("hello there"), assistant("late late")))
    record = Demonstration(messages=talk)
    whole = whole_row(chatml, record)
    render, turns = chatml._renderer.render, 0

    def counted(messages: Any, **options: Any) -> str:
        nonlocal turns
        turns += len(messages)
        return render(messages, **options)

    monkeypatch.setattr(chatml._renderer, "render", counted)
    found = fit_record(chatml, record, room, whole)
    assert (found is None) is (room == 5)
    assert found is None or found.length > room - 20
    assert turns <= most * 100


def test_context_stays_context_when_turns_before_it_go(chatml: ChatTemplate) -> None:
    turns = (user("a" * 30), assistant("b"), user("c"), assistant("bad", supervised=False), user("d"), assistant("e"))
    for record in (Demonstration(messages=turns), Demonstration(messages=turns, supervise_from=3)):
        cut = fit_record(chatml, record, whole_row(chatml, record).length - 1)
        assert cut is not None
        assert cut.turns_dropped == 2
        assert [piece.text for piece in marked_texts(chatml, cut.tree) if piece.supervised] == ["e<|im_end|>"]


def test_counts(chatml: ChatTemplate) -> None:
    counts = FitCounts()
    rows: list[Record] = [
        Demonstration(messages=TALK),
        Demonstration(messages=(user("late " * 40), assistant("x"))),
        Demonstration(messages=(user("x"), assistant("late " * 40))),
        Preference(prompt=(user("x"),), chosen="  yes", rejected="yes"),
        Vote(prompt=(user("x"),), completion="y", label=False),
    ]
    trees = [fit(chatml, row, 40, counts) for row in rows]
    assert [None if tree is None else tree.row for tree in trees] == [0, 1, None, 2, 3]
    assert (counts.records, counts.rows, counts.dropped) == (5, 4, 1)
    assert (counts.rows_cut, counts.turns_dropped, counts.texts_cut) == (2, 4, 1)
    assert counts.longest_row_tokens == max(tree.tokens for tree in trees if tree is not None)


def test_answers_of_the_same_tokens_are_no_pair_for_training_and_are_scored(make_tokenizer: MakeTokenizer) -> None:
    trimming = ChatTemplate(make_tokenizer("llama 3"))
    pair = Preference(prompt=(user("x"),), chosen=" yes", rejected="yes")
    counts = FitCounts()
    assert fit(trimming, pair, 100, counts) is None
    assert (counts.dropped_identical, counts.dropped, counts.rows) == (1, 1, 0)
    assert fit_answers(trimming, pair.prompt, ("yes", " yes"), 100) is not None


def test_turns_that_are_not_learned_are_counted(make_tokenizer: MakeTokenizer) -> None:
    counts = FitCounts()
    fit(ChatTemplate(make_tokenizer(QWEN3)), Demonstration(messages=TALK), 500, counts)
    assert counts.turns_not_learned == 2


# --- Properties ------------------------------------------------------------------------------------------------------

words = st.text(alphabet="ab é\n.", min_size=1, max_size=12).filter(str.strip)
STYLES: list[Any] = ["chatml", "llama 2", "gemma", "phi 3", "plain", "no end of turn", QWEN3, R1, MISTRAL, LLAMA31]


@st.composite
def conversations(draw: Any, *, calls: bool, with_system: bool) -> Conversation:
    turns: list[Message] = [system(draw(words))] if with_system and draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 4))):
        turns.append(user(draw(words)))
        if calls and draw(st.booleans()):
            turns += [assistant("", tool_calls=(CALL,)), Message(role="tool", content=draw(words))]
            turns[-1] = turns[-1].model_copy(update={"tool_call_id": "abcdefgh1"})
        turns.append(assistant(draw(words), supervised=draw(st.booleans())))
    return tuple(turns)


@cache
def made(make_tokenizer: MakeTokenizer, number: int) -> ChatTemplate:
    return ChatTemplate(make_tokenizer(STYLES[number]))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), number=st.integers(0, len(STYLES) - 1), room=st.integers(1, 120))
def test_every_cut_row_still_renders(data: Any, number: int, room: int, make_tokenizer: MakeTokenizer) -> None:
    """By another way: all shorter conversations are tried, the longest first."""
    template = made(make_tokenizer, number)
    calls = template.traits.calls is not None and template.traits.tool_turns
    with_system = template.traits.system_refusal is None
    *prompt, last = data.draw(conversations(calls=calls, with_system=with_system))
    answers = data.draw(st.sampled_from([(), (last.content,), (last.content, "no")]))
    found = fit_answers(template, tuple(prompt), answers, room)
    expected = next(
        (tree for each in shorter(tuple(prompt)) if length(tree := template.answers_tree(each, answers)) <= room), None
    )
    if found is not None and found.text_cut:
        assert expected is not None
        assert length(expected) - 20 <= length(found.tree)  # from the beginning of a word on
    else:
        assert (None if found is None else found.tree) == expected
    if found is not None:
        assert length(found.tree) <= room
        whole = template.answers_tree(tuple(prompt), answers)
        assert found.cut == (found.tree != whole)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), number=st.integers(0, len(STYLES) - 1), room=st.integers(1, 120))
def test_every_cut_demonstration_learns_only_what_it_should(
    data: Any, number: int, room: int, make_tokenizer: MakeTokenizer
) -> None:
    template = made(make_tokenizer, number)
    calls = template.traits.calls is not None and template.traits.tool_turns
    turns = data.draw(conversations(calls=calls, with_system=template.traits.system_refusal is None))
    turns = tuple(
        # A letter of its own for what is not to be learned.
        turn.model_copy(update={"content": "z" + turn.content})
        if turn.role in ("user", "tool") or not turn.supervised
        else turn
        for turn in turns
    )
    if not any(turn.role == "assistant" and turn.supervised for turn in turns):
        return
    record = Demonstration(messages=turns)
    found = fit_record(template, record, room)
    if found is None:
        return
    assert found.length <= room
    learned = "".join(piece.text for piece in marked_texts(template, found.tree) if piece.supervised)
    assert learned
    assert "z" not in learned
    if turns[0].role == "system":
        assert turns[0].content.strip() in template.tokenizer.decode(list(found.tree.prompt))


def length(tree: TokenTree) -> int:
    return len(tree.prompt) + max(map(len, tree.answers), default=0)


def shorter(prompt: Conversation) -> list[Conversation]:
    """Every way to cut a prompt, the least first."""
    opening = prompt[:1] if prompt[0].role == "system" else ()
    starts = [index for index, turn in enumerate(prompt) if turn.role == "user"]
    ends = [(*opening, *prompt[start:]) for start in starts]
    last, rest = prompt[starts[-1]], prompt[starts[-1] + 1 :]
    texts = [last.content[cut:] for cut in range(1, len(last.content)) if last.content[cut:].strip()]
    return [*ends, *((*opening, user(text), *rest) for text in texts)]


@pytest.mark.parametrize("kind", ["pair", "vote", "completion", "prompt"])
def test_records_are_fitted_as_their_prompt_and_answers(kind: str, chatml: ChatTemplate) -> None:
    prompt = (user("late " * 20), assistant("a"), user("b"))
    records: dict[str, Any] = {
        "pair": Preference(prompt=prompt, chosen="c", rejected="d"),
        "vote": Vote(prompt=prompt, completion="c", label=True),
        "completion": Completion(prompt=prompt, completion="c"),
        "prompt": Prompt(prompt=prompt),
    }
    answers = {"pair": ("c", "d"), "prompt": ()}.get(kind, ("c",))
    for room in (1000, 20):
        assert fit_record(chatml, records[kind], room) == fit_answers(chatml, prompt, answers, room)


def test_a_row_of_the_embedded_model(embedded_model: str) -> None:
    """SmolLM2 writes a system turn of its own where there is none, and it stays."""
    from prefine.models.loading.load import load_tokenizer
    from prefine.models.loading.location import locate_model
    from prefine.recipe.sections import named_model

    template = load_tokenizer(locate_model(embedded_model), named_model(embedded_model))
    record = Demonstration(messages=TALK[1:])
    cut = fit_record(template, record, whole_row(template, record).length - 1)
    assert shown(template, cut).startswith("<|im_start|>system\n")
    assert "one" not in shown(template, cut)
    assert shown(template, cut).endswith("⟦six<|im_end|>⟧")
