"""~ is the home folder wherever a path may be written, and names that no folder can have are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prefine.cli.app import main
from prefine.errors import ModelError, RecipeError
from prefine.models.loading.location import locate_model
from prefine.paths import model_name
from prefine.recipe.loading import load_recipe
from prefine.recipe.rl import PpoRecipe
from prefine.recipe.sft import SftRecipe


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_every_path_of_a_recipe_begins_at_home(home: Path) -> None:
    fields = ["run", "model.name", "model.chat_template", "data.train", "data.heldout", "report.prompts"]
    fields += ["reward.name", "reward.judge", "heldout_pairs"]
    recipe = load_recipe(None, [f"{field}=~/x" for field in fields], PpoRecipe).model_dump()
    for field in fields:
        value: Any = recipe
        for key in field.split("."):
            value = value[key]
        assert value == f"{home}/x", field
    assert load_recipe(None, ["data.train=[~/a, b]"], SftRecipe).data.train == [f"{home}/a", "b"]


@pytest.mark.parametrize(
    ("run", "rule"),
    [
        ('""', "names no folder"),
        ('" "', "names no folder"),
        (r'"a\0b"', "cannot hold NUL"),
        ("~nobody-of-that-name/x", "there is no such user"),
    ],
)
def test_names_that_no_run_can_have(run: str, rule: str) -> None:
    with pytest.raises(RecipeError, match=rf"run.*{rule}"):
        load_recipe(None, [f"run={run}"], SftRecipe)


def test_models_are_found_from_home(home: Path) -> None:
    (home / "m").mkdir()
    with pytest.raises(ModelError, match="holds no model"):  # so the folder was found
        locate_model("~/m")


def test_paths_on_the_command_line_begin_at_home(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["report", "~/nothing"])
    assert left.value.code == 2
    assert f"{home}/nothing holds no run to report on" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["sft", "~/recipe.yaml"])
    assert f"There is no recipe {home}/recipe.yaml" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("./runs/dpo/", "runs/dpo"),
        ("runs//x/../dpo", "runs/dpo"),
        ("http://host:1/v1//#m/", "http://host:1/v1//#m/"),
        ("embedded:small", "embedded:small"),
        ("org/model", "org/model"),
        ("", ""),
    ],
)
def test_a_model_has_one_name_however_it_is_typed(typed: str, name: str) -> None:
    assert model_name(typed) == name
