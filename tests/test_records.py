"""Records take what a row may say, refuse what no template could write, and are written as before without it."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from prefine.records import Demonstration, Message, Preference, Prompt

CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {}}}


def user(text: str = "Q") -> Message:
    return Message(role="user", content=text)


def assistant(text: str = "A", **fields: Any) -> Message:
    return Message(role="assistant", content=text, **fields)


def tool(text: str = "12 °C", **fields: Any) -> Message:
    return Message(role="tool", content=text, **fields)


def reason(make: Any) -> tuple[tuple[int | str, ...], str]:
    with pytest.raises(ValidationError) as caught:
        make()
    (error,) = caught.value.errors()
    return error["loc"], error["msg"].removeprefix("Value error, ")


@pytest.mark.parametrize(
    "turns",
    [
        (user(), assistant("", tool_calls=(CALL,)), tool(name="weather", tool_call_id="c1"), assistant()),
        (user(), assistant("", tool_calls=(CALL, CALL)), tool(), tool(), assistant("", tool_calls=(CALL,))),
        (user(), assistant("Wait.", tool_calls=(CALL,)), user(), assistant()),
        (Message(role="system", content="S"), user(), assistant(reasoning="Hm."), user(), assistant(supervised=False)),
    ],
)
def test_a_conversation_survives_being_written(turns: tuple[Message, ...]) -> None:
    record = Demonstration(messages=turns, tools=(TOOL,))
    assert Demonstration.model_validate_json(record.model_dump_json()) == record
    assert Demonstration.model_validate(record.model_dump()) == record
    prompt = Prompt(prompt=turns[:-1])
    assert Prompt.model_validate_json(prompt.model_dump_json()) == prompt


def test_what_is_absent_is_not_written() -> None:
    """So records without tools are written as they were before there were any, and the same ones are drawn of them."""
    pair = Preference(prompt=(user(),), chosen="A", rejected="B")
    assert pair.model_dump_json() == (
        '{"prompt":[{"role":"user","content":"Q"}],"id":null,"extra":{},"chosen":"A","rejected":"B",'
        '"margin":null,"score_difference":null,"tie":false}'
    )
    said = Demonstration(messages=(user(), assistant()))
    assert said.model_dump_json() == (
        '{"messages":[{"role":"user","content":"Q"},{"role":"assistant","content":"A"}],"supervise_from":0,'
        '"id":null,"extra":{}}'
    )


@pytest.mark.parametrize(
    ("make", "loc", "said"),
    [
        (lambda: assistant(" "), ("content",), "is blank"),
        (lambda: tool(" "), ("content",), "is blank"),
        (
            lambda: Message(role="user", content="Q", reasoning="Hm."),
            ("reasoning",),
            "is only for assistant turns; this turn's role is 'user'",
        ),
        (
            lambda: Message(role="user", content="Q", tool_calls=(CALL,)),
            ("tool_calls",),
            "is only for assistant turns; this turn's role is 'user'",
        ),
        (lambda: assistant(name="weather"), ("name",), "is only for tool turns; this turn's role is 'assistant'"),
        (
            lambda: assistant("", tool_calls=({"id": "c"},)),
            ("tool_calls",),
            "has a call without the name of a function",
        ),
        (
            lambda: assistant("", tool_calls=({"name": "f", "arguments": [1]},)),
            ("tool_calls",),
            "has a call of 'f' whose arguments are neither an object nor text",
        ),
        (
            lambda: assistant(tool_calls=({"name": "f", "arguments": {"x": float("nan")}},)),
            ("tool_calls",),
            "holds the number nan, which JSON cannot represent",
        ),
        (
            lambda: assistant(tool_calls=({"name": "f", "arguments": {"\ud800": 1}},)),
            ("tool_calls",),
            "has a lone surrogate (half of a character)",
        ),
        (
            lambda: Prompt(prompt=(user(),), tools=({"name": b"f"},)),
            ("tools",),
            "holds a value of type bytes, which JSON cannot represent",
        ),
    ],
)
def test_what_no_template_could_write_is_refused_by_field(make: Any, loc: tuple[str, ...], said: str) -> None:
    assert reason(make) == (loc, said)


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        (
            (user(), assistant(), tool(), assistant()),
            "turn 3 is 'tool', but the assistant turn before it has no tool_calls",
        ),
        (
            (user(), assistant("", tool_calls=(CALL,)), assistant()),
            "turn 3 is 'assistant' where 'user' or 'tool' is expected",
        ),
        ((tool(), assistant()), "turn 1 is 'tool' where 'user' is expected"),
        ((user(), assistant("", tool_calls=(CALL,)), tool(), user(), assistant()), None),
        ((user(), assistant("", tool_calls=(CALL,)), tool()), "ends with 'tool'; the last turn must be 'assistant'"),
        ((user(), assistant(supervised=False)), "no assistant turn is supervised, so there is nothing to learn"),
    ],
)
def test_turns_out_of_order_are_refused(turns: tuple[Message, ...], said: str | None) -> None:
    expected = said or "turn 4 is 'user' where 'assistant' or 'tool' is expected"
    assert reason(lambda: Demonstration(messages=turns)) == ((), expected)


def test_a_prompt_may_end_with_a_tools_result_but_not_with_an_answer() -> None:
    asked = (user(), assistant("", tool_calls=(CALL,)))
    assert Prompt(prompt=(*asked, tool())).prompt[-1].role == "tool"
    assert reason(lambda: Prompt(prompt=asked)) == ((), "ends with 'assistant'; the last turn must be 'user'")


def test_learned_turns_are_the_supervised_ones_from_the_first_on() -> None:
    turns = (user(), assistant(), user(), assistant(supervised=False), user(), assistant())
    assert Demonstration(messages=turns).learned_turns == (1, 5)
    assert Demonstration(messages=turns, supervise_from=2).learned_turns == (5,)
