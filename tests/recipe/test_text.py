"""`prefine recipe`: every field of every shipped recipe, in a file that can be used and changed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from prefine.cli import app as module
from prefine.cli.app import main
from prefine.errors import RecipeError
from prefine.recipe.dpo import DpoRecipe
from prefine.recipe.loading import load_recipe, resolved_yaml
from prefine.recipe.registry import RECIPES
from prefine.recipe.shipped import shipped_pipelines, shipped_recipes, stage_of
from prefine.recipe.text import commented_recipe

NAMES = list(shipped_recipes())


def fields_of(section: BaseModel, prefix: str = "") -> list[str]:
    found = []
    for name in type(section).model_fields:
        value = getattr(section, name)
        found.append(prefix + name)
        if isinstance(value, BaseModel):
            found += fields_of(value, f"{prefix}{name}.")
    return found


def written_fields(text: str) -> list[str]:
    """The dotted names of a commented recipe's fields, by their indentation."""
    path: list[str] = []
    found = []
    for line in text.splitlines():
        if match := re.match(r"(?:# )?((?:  )*)(\w+):", line):
            path = [*path[: len(match[1]) // 2], match[2]]
            found.append(".".join(path))
    return found


def test_all_stages_and_their_quickstart_are_shipped() -> None:
    quickstart = ("sft", "reward", "dpo", "ppo")
    assert [*RECIPES, *(f"quickstart-{stage}" for stage in quickstart)] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_it_names_every_field_and_says_what_the_shipped_file_says(name: str, tmp_path: Path) -> None:
    model, shipped = RECIPES[stage_of(name)], load_recipe(shipped_recipes()[name], [], RECIPES[stage_of(name)])
    text = commented_recipe(name)
    assert written_fields(text) == fields_of(shipped)
    path = tmp_path / f"{name}.yaml"
    path.write_text(text, encoding="utf-8")
    assert load_recipe(path, [], model) == shipped
    assert load_recipe(path, [], model).model_fields_set == shipped.model_fields_set


@pytest.mark.parametrize("name", NAMES)
def test_without_its_comment_signs_it_says_the_same(name: str, tmp_path: Path) -> None:
    """Each default that stands there is the one that holds where the line is a comment."""
    path = tmp_path / "all.yaml"
    path.write_text(re.sub("(?m)^# ", "", commented_recipe(name)), encoding="utf-8")
    model = RECIPES[stage_of(name)]
    whole = load_recipe(path, [], model)
    assert resolved_yaml(whole) == resolved_yaml(load_recipe(shipped_recipes()[name], [], model))


def test_a_default_that_follows_another_field_stays_a_default(tmp_path: Path) -> None:
    """DPO's beta depends on the loss, unless the recipe sets it; so do not set what the shipped file leaves open."""
    assert "\n#   nll_weight: 0.0 " in commented_recipe("dpo")
    assert "\n#   beta: 0.1 " in commented_recipe("dpo")
    for loss, beta in (("sigmoid", 0.1), ("simpo", 2.0), ("ipo", 1.0)):
        (tmp_path / "dpo.yaml").write_text(commented_recipe("dpo"))
        assert load_recipe(tmp_path / "dpo.yaml", [f"dpo.loss={loss}"], DpoRecipe).dpo.beta == beta
    assert "\n# lora:" in commented_recipe("ppo") and "\nlora:" in commented_recipe("dpo")


def test_the_verb_prints_one_or_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["recipe", "dpo"])
    assert left.value.code in (0, None)
    assert capsys.readouterr().out == commented_recipe("dpo")
    with pytest.raises(SystemExit):
        main(["recipe"])
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed[:-1]] == [*NAMES, "Pipelines,", *shipped_pipelines()]
    assert "prefine recipe NAME > NAME.yaml" in listed[-1]


def test_an_unknown_name_is_answered_with_those_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["recipe", "grpo"])
    assert left.value.code == 2
    assert capsys.readouterr().err == (
        f"error: There is no recipe 'grpo'. The recipes are {', '.join(NAMES)}; the pipelines "
        f"{', '.join(shipped_pipelines())}.\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=r"prefine recipe dpo > dpo\.yaml"):
        load_recipe(Path("recipes/dpo.yaml"), [], RECIPES["dpo"])


def test_completion_is_installed_and_knows_the_recipes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    monkeypatch.setattr(module, "app", module.create_app())  # its command is built with that variable
    with pytest.raises(SystemExit) as left:
        main(["--install-completion", "bash"])
    assert left.value.code in (0, None)
    assert "installed" in capsys.readouterr().out
    assert "_PREFINE_COMPLETE" in "".join(path.read_text("utf-8") for path in tmp_path.rglob("*") if path.is_file())
    for name, value in {
        "_PREFINE_COMPLETE": "complete_bash",
        "COMP_WORDS": "prefine recipe quickstart-d",
        "COMP_CWORD": "2",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        main([])
    assert capsys.readouterr().out.split() == ["quickstart-dpo"]


def test_pipelines_are_listed_and_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["recipe"])
    listed = capsys.readouterr().out
    assert {"support-desk", "sentiment-ppo", "7b-24gb", "7b-40gb", "hh-rlhf", "summarisation"} <= set(listed.split())
    for name, path in shipped_pipelines().items():
        with pytest.raises(SystemExit):
            main(["recipe", name])
        assert capsys.readouterr().out == path.read_text("utf-8")
