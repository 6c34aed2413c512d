"""Bad arguments of every verb are one line with exit code 2, before any work; never a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefine.cli.app import main
from prefine.errors import RecipeError
from prefine.recipe.loading import load_recipe
from prefine.recipe.sft import SftRecipe

LONG, DIGITS = "x" * 300, "9" * 23
NUMBERS = {
    "generate MODEL --prompts FILE": ("--seed", "--samples", "--max-new-tokens", "--slots", "--top-k"),
    "chat MODEL": ("--seed", "--max-new-tokens"),
    "data check FILE": ("--max-length-tokens",),
}
NAMES = ("report", "sft")


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as leaving:
        main(arguments)
    shown = capsys.readouterr()
    assert (leaving.value.code, shown.out, shown.err.count("\n")) == (2, "", 1), shown
    assert shown.err.startswith("error: ")
    return shown.err


@pytest.fixture
def words(tmp_path: Path) -> dict[str, str]:
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "a", "completion": "b"}\n')
    return {"FILE": str(source), "MODEL": str(tmp_path / "none")}


@pytest.mark.parametrize("value", [DIGITS, "-1", "x"])
@pytest.mark.parametrize(("verb", "option"), [(verb, option) for verb in NUMBERS for option in NUMBERS[verb]])
def test_numbers(verb: str, option: str, value: str, words: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [words.get(word, word) for word in verb.split()]
    said = refused([*arguments, f"{option}={value}"], capsys)
    assert option in said
    assert said.endswith(f"See prefine {' '.join(verb.split()[: 2 if verb.startswith('data') else 1])} --help.\n")


@pytest.mark.parametrize("verb", NAMES)
def test_names_that_are_too_long(verb: str, words: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    refused([*(words.get(word, word) for word in verb.split()), LONG], capsys)


def test_an_empty_out(words: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(["score", words["MODEL"], words["FILE"], "--out", ""], capsys)
    assert "--out is '.', which names no file" in said


@pytest.mark.parametrize("override", [f"training.seed={DIGITS}", "lora.r=100000000", f"training.max_steps={DIGITS}"])
def test_numbers_of_recipes(override: str) -> None:
    with pytest.raises(RecipeError, match="must be less than or equal to"):
        load_recipe(None, [override], SftRecipe)
