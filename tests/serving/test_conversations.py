"""Messages of requests are read as rows of data are; what cannot be honoured is refused by its field."""

from __future__ import annotations

from typing import Any

import pytest

from prefine.records import Message
from prefine.serving import conversations
from prefine.serving.conversations import prompt_of
from prefine.web.errors import ApiError

USER = {"role": "user", "content": "Hello"}
TOOL = {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}


def turns(*messages: dict[str, Any]) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in prompt_of(messages, ()).prompt]


def test_roles_and_text_blocks() -> None:
    developer = {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]}
    assert turns(developer, USER) == [("system", "Be brief."), ("user", "Hello")]


def test_turns_of_one_speaker_in_a_row_are_one_turn() -> None:
    found = turns(
        {"role": "system", "content": "A"},
        {"role": "system", "content": "B"},
        USER,
        {"role": "user", "content": "Well?"},
    )
    assert found == [("system", "A\n\nB"), ("user", "Hello\n\nWell?")]


def test_a_run_of_turns_is_joined_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Joined one by one, the text so far would be copied at every turn."""
    made: list[str] = []

    def message(**fields: Any) -> Message:
        made.append(fields["content"])
        return Message(**fields)

    monkeypatch.setattr(conversations, "Message", message)
    letters = "abc" * 100
    prompt_of([{"role": "user", "content": letter} for letter in letters], ())
    assert made == ["\n\n".join(letters)]


def test_results_of_several_calls_stay_apart() -> None:
    calls = [{"id": name, "type": "function", "function": {"name": "now", "arguments": "{}"}} for name in ("1", "2")]
    results = [{"role": "tool", "tool_call_id": name, "content": name} for name in ("1", "2")]
    prompt = prompt_of([USER, {"role": "assistant", "content": None, "tool_calls": calls}, *results], [TOOL])
    assert [turn.role for turn in prompt.prompt] == ["user", "assistant", "tool", "tool"]
    assert prompt.tools == (TOOL,)


def test_the_choice_of_no_tool_leaves_the_tools_out() -> None:
    assert prompt_of([USER], [TOOL], "none").tools == ()


@pytest.mark.parametrize(
    ("messages", "field", "says"),
    [
        ([{"role": "wizard", "content": "x"}], "messages[0].role", "'wizard'"),
        ([{"role": "user", "content": 3}], "messages[0].content", "number"),
        ([{"role": "user", "content": " "}], "messages[0].content", "blank"),
        ([{"role": "user"}], "messages[0].content", "null"),
        ([{"role": "user", "content": "\ud800"}], "messages[0].content", "surrogate"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
            "messages[0].content[0].type",
            "text only",
        ),
        ([USER, {"role": "assistant", "content": "Hi"}], "messages", "last turn must be 'user'"),
        (
            [USER, {"role": "assistant", "content": "Hi"}, {"role": "system", "content": "x"}, USER],
            "messages",
            "'system'",
        ),
        ([{"role": "assistant", "content": "Hi"}, USER], "messages", "'assistant'"),
        ([USER, {"role": "tool", "content": "x"}], "messages", "'tool'"),
        ([{"role": "system", "content": "x"}], "messages", "no user turn"),
    ],
)
def test_what_cannot_be_honoured_is_refused(messages: list[dict[str, Any]], field: str, says: str) -> None:
    with pytest.raises(ApiError) as refused:
        prompt_of(messages, ())
    assert (refused.value.status, refused.value.param) == (400, field)
    assert says in refused.value.message


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "now"}}])
def test_a_call_cannot_be_forced(choice: Any) -> None:
    with pytest.raises(ApiError) as refused:
        prompt_of([USER], [TOOL], choice)
    assert refused.value.param == "tool_choice"
