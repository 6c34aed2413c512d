"""A conversation with T, the tiny model of 512 tokens' context, a token a byte."""

from __future__ import annotations

import pytest

from prefine.errors import DataError
from prefine.generation.chat import Talk
from prefine.generation.engine import writer_for
from prefine.generation.sampling import Sampling
from prefine.generation.writer import Request
from prefine.models.loading.load import LoadedModel, load_model
from prefine.recipe.sections import named_model
from prefine.records import Message
from tests.training import tiny

SAMPLING = Sampling(12, 0.9, seed=5)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tiny.save_model(tmp_path_factory.mktemp("T") / "model")
    return load_model(named_model(str(folder), device="cpu", dtype="float32"), None, trainable=False)


def written(loaded: LoadedModel, *turns: Message, seed: int) -> str:
    """What the model writes to these turns, all at once."""
    prompt = loaded.template.prompt_ids(turns)
    request = Request(prompt, Sampling(12, 0.9, seed=seed), loaded.template.stop_ids)
    (result,) = writer_for(loaded.packed, loaded.tokenizer, 1).write([request])
    return result.text.strip()


def test_an_answer_is_what_the_model_writes_to_all_turns_so_far(loaded: LoadedModel) -> None:
    talk = Talk(loaded, "Be brief.", SAMPLING)
    for number, said in enumerate(("one", "two\nlines", "three")):
        asked = (*talk.messages, Message(role="user", content=said))
        assert "".join(talk.answer(said)).strip() == written(loaded, *asked, seed=5 + number)
    assert [message.role for message in talk.messages] == ["system", *["user", "assistant"] * 3]


def test_pieces_come_while_the_model_writes(loaded: LoadedModel) -> None:
    """So that whoever listens can stop between any two, and keeps what was shown."""
    talk = Talk(loaded, None, SAMPLING)
    answer = talk.answer("one")
    shown = "".join(next(answer) for _ in range(5))
    answer.close()
    assert shown.strip()
    assert [message.content for message in talk.messages] == ["one", shown.strip()]
    assert "".join(talk.answer("two")).strip() == talk.messages[-1].content


def test_undo_takes_back_a_question_and_its_answer_and_the_next_one_is_drawn_anew(loaded: LoadedModel) -> None:
    talk = Talk(loaded, "Be brief.", SAMPLING)
    first = "".join(talk.answer("one"))
    assert talk.undo()
    assert [message.role for message in talk.messages] == ["system"]
    assert not talk.undo()
    assert "".join(talk.answer("one")) != first
    talk.forget()
    assert talk.system == "Be brief."
    assert len(talk.messages) == 1


def test_the_answer_says_whether_it_was_cut(loaded: LoadedModel) -> None:
    for most, cut in ((5, True), (200, False)):
        talk = Talk(loaded, None, Sampling(most, 0.9, seed=5))
        list(talk.answer("one"))
        assert talk.cut == cut


def test_the_oldest_turns_are_not_seen_where_the_context_is_full_but_kept(loaded: LoadedModel) -> None:
    talk = Talk(loaded, "Be brief.", SAMPLING)
    for number in range(4):
        list(talk.answer(f"{number}" * 120))
    assert talk.unseen > 0
    assert talk.unseen % 2 == 0
    assert len(talk.messages) == 9
    seen = (talk.messages[0], *talk.messages[1 + talk.unseen : -2], Message(role="user", content="3" * 120))
    assert talk.messages[-1].content == written(loaded, *seen, seed=8)
    talk.undo()
    assert talk.unseen == 0


@pytest.mark.parametrize(
    ("said", "problem"), [("x" * 600, "has room for 500 besides the answer"), ("\ud800", "the user turn has a lone")]
)
def test_what_cannot_be_said_is_refused_and_changes_nothing(loaded: LoadedModel, said: str, problem: str) -> None:
    talk = Talk(loaded, None, SAMPLING)
    list(talk.answer("one"))
    before = talk.messages
    with pytest.raises(DataError, match=problem):
        list(talk.answer(said))
    assert talk.messages == before
    assert "".join(talk.answer("two")).strip() == talk.messages[-1].content
