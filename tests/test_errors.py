"""Errors name the field, and a caller can say what its user calls it."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from prefine.errors import ModelError, PrefineError, RefusedRowError, about
from prefine.models.loading.location import locate_model


def raised(name: str | None, error: PrefineError, **others: str) -> str:
    with (
        pytest.raises(type(error)) as caught,
        about(name, {f"model.{field}": option for field, option in others.items()}),
    ):
        raise error
    assert caught.value is error
    return str(caught.value)


def test_a_message_begins_with_the_field() -> None:
    assert (
        str(ModelError("no such folder.", "Name one.", field="model.name")) == "model.name: no such folder. Name one."
    )
    assert str(ModelError("no such folder", "Name one.")) == "no such folder. Name one."


@pytest.mark.parametrize("field", ["model.name", "model.chat_template", "reward.name"])
@pytest.mark.parametrize(
    ("name", "begin"), [("--policy", "--policy: "), (None, ""), ("reward.more[1].name", "reward.more[1].name: ")]
)
def test_a_caller_names_the_field_of_a_models_error(field: str, name: str | None, begin: str) -> None:
    assert raised(name, ModelError("no such folder", "Name one.", field=field)) == f"{begin}no such folder. Name one."


def test_the_innermost_name_holds_and_other_fields_keep_theirs() -> None:
    with pytest.raises(ModelError, match=r"^--policy: gone"), about(None), about("--policy"):
        raise ModelError("gone", "Name one.", field="model.name")
    assert raised("--policy", ModelError("no row", "Add one.", field="data.train")) == "data.train: no row. Add one."
    row = RefusedRowError("tools", "are given, and nothing writes them", "Leave them out.")
    assert raised("--policy", row) == "tools are given, and nothing writes them. Leave them out."


def test_a_single_field_has_a_name_of_its_own_also_in_the_remedy() -> None:
    error = ModelError("there is none", "Set model.chat_template to plain.", field="model.chat_template")
    assert raised(None, error, chat_template="--chat-template") == (
        "--chat-template: there is none. Set --chat-template to plain."
    )


def test_a_plain_word_stays_in_the_remedy() -> None:
    error = ModelError("it gives no scores", "Name a reward model.", field="reward")
    with pytest.raises(ModelError) as caught, about(None, {"reward": "--reward"}):
        raise error
    assert str(caught.value) == "--reward: it gives no scores. Name a reward model."


def test_the_field_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(ModelError("gone", "Name one.", field="model.name")))  # noqa: S301
    assert (error.field, str(error)) == ("model.name", "model.name: gone. Name one.")


def test_a_model_that_is_not_there_is_told_by_the_callers_name(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nothing")
    with pytest.raises(ModelError) as caught:
        locate_model(nowhere)
    assert (caught.value.field, caught.value.problem) == ("model.name", f"there is no folder {nowhere!r}")
