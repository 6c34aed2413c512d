"""What is left out of requests that an endpoint refuses."""

from __future__ import annotations

import pytest

from prefine.errors import EndpointError, RecipeError
from prefine.judges.chat_form import ChatForm, FormedChat
from prefine.judges.endpoint import BadRequestError, Patience
from tests.judges.fake import Answer, refusal, running

ASKED = {"model": "m", "messages": [], "max_tokens": 5, "top_p": 1, "response_format": {}}


def test_a_field_is_left_out_if_a_refusal_names_it_and_may_be() -> None:
    form = ChatForm(optional=("top_p",), last="response_format")
    shorter = form.without("unknown field top_p")
    assert shorter is not None
    assert shorter.body(ASKED).keys() == ASKED.keys() - {"top_p"}
    plain = shorter.without("no")
    assert plain is not None
    assert plain.body(ASKED).keys() == ASKED.keys() - {"top_p", "response_format"}
    assert plain.without("no top_p") is None
    renamed = form.without("use max_completion_tokens")
    assert renamed is not None
    assert renamed.body(ASKED)["max_completion_tokens"] == 5


def test_what_always_fails_alike_ends_the_work() -> None:
    with running(lambda body, number: refusal(400, "no such model")) as fake, fake.endpoint() as endpoint:
        chat = FormedChat(endpoint, ChatForm(optional=()))
        for _ in range(2):
            with pytest.raises(BadRequestError):
                chat.ask(ASKED)
        with pytest.raises(EndpointError, match="refuses every request with status 400: no such model"):
            chat.ask(ASKED)


def test_one_refusal_after_a_success_ends_nothing() -> None:
    def answer(body: dict[str, object], number: int) -> Answer:
        return Answer("yes") if number == 1 else refusal(400, "bad words")

    with running(answer) as fake, fake.endpoint() as endpoint:
        chat = FormedChat(endpoint, ChatForm(optional=("top_p",)))
        chat.ask(ASKED)
        for _ in range(4):
            with pytest.raises(BadRequestError):
                chat.ask(ASKED)


@pytest.mark.parametrize("given", [{"timeout_s": 0.0}, {"attempts": 0}, {"timeout_s": float("nan")}])
def test_patience_has_limits(given: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match="must be a number above 0"):
        Patience(**given)  # type: ignore[arg-type]
