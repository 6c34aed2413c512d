"""Whatever is given to an option is done or refused in one line with exit code 2: every option of every verb."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from typer.models import ArgumentInfo, OptionInfo

from prefine.cli.app import VERBS, main
from tests.training import tiny

NO_NUMBERS = ("", " ", "x", "nan", "inf", "-inf", "1e400", "1e23", "-1", "9" * 23, "0x1", "1,5", "١x")
FLOATS = ("nan", "inf", "-inf", "1e400", "1e23", "-1", "9" * 23)
TEXTS = (
    *("", " ", "-", "--", "nan", "9" * 23, "x" * 5000, "a\0b", "\x1b[31mred\x07", "\udcff", "a\nb", "..", "/", "~"),
    *("[", "{{", "{% for %}", "%s", "=", "a=", "=b", "training.seed=[", "training.seed={a: &a [*a]}", "*", "hf:", "#"),
)
SETTINGS = (
    *("training.learning_rate=nan", "training.learning_rate=.nan", "training.learning_rate=.inf"),
    *("training.learning_rate=1e400", "training.seed=1e23", "training.max_steps=-1", "lora.r=1e23", "lora.alpha=x"),
    *("report.temperature=1e23", "report.temperature=-.inf", "data.heldout_fraction=nan"),
)


@dataclass(frozen=True)
class Place:
    """One option or argument of a verb."""

    verb: str
    words: str
    name: str
    type: Any

    def __str__(self) -> str:
        return f"{self.verb} {self.name}"


def places() -> Iterator[Place]:
    """All that take a value, by the functions that do the verbs."""
    for verb, target in VERBS.items():
        module, _, name = target.partition(":")
        function = getattr(import_module(module), name)
        hints = get_type_hints(function, include_extras=True)
        found: list[tuple[str, bool, type]] = []
        for parameter in inspect.signature(function).parameters.values():
            hint = hints[parameter.name]
            if not hasattr(hint, "__metadata__"):  # typer's context
                continue
            info = next(each for each in hint.__metadata__ if isinstance(each, OptionInfo | ArgumentInfo))
            # Without a default of its own, what is said first of an option is taken for one.
            said = [each for each in (info.default, *(info.param_decls or ())) if isinstance(each, str)]
            spelled = said[0] if said else f"--{parameter.name.replace('_', '-')}"
            word = str(info.metavar) if isinstance(info, ArgumentInfo) else spelled
            needed = parameter.default is inspect.Parameter.empty and info.default_factory is None
            found.append((word, needed, hint.__origin__))
        required = " ".join(word if word[0] != "-" else f"{word} FILE" for word, needed, _ in found if needed)
        yield from (Place(verb, required, word, kind) for word, _, kind in found if kind is not bool)


PLACES = list(places())
NUMBERS = [each for each in PLACES if each.type in (int, float)]
OTHERS = [each for each in PLACES if each not in NUMBERS]


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What stands for each argument: files that are there, and a model that is not, so that no work begins."""
    monkeypatch.chdir(tmp_path)
    source = tiny.write_rows(tmp_path / "in.jsonl", tiny.pairs(2))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"data:\n  train: {source}\nmodel:\n  name: ./none\n")
    pipeline = tmp_path / "pipeline.yaml"
    stage = f"{{method: sft, model: {{name: ./none}}, data: {{train: {source}}}}}"
    pipeline.write_text(f"stages:\n  sft: {stage}\n")
    return {
        "FILE": str(source),
        "MODEL": "./none",
        "RECIPE": str(recipe),
        "PIPELINE": str(pipeline),
        "RUN": "./none",
        "CANDIDATE": "./none",
        "FOLDER": "./new",
    }


def refused(place: Place, value: str, words: dict[str, str], capsys: pytest.CaptureFixture[str]) -> str | None:
    """The line that refuses a value; None if something was done."""
    given = [words.get(word, word) for word in place.words.replace(f"{place.name} FILE", "").split()]
    if place.name[0] == "-":
        given.append(f"{place.name}={value}")
    else:
        given = [*(words.get(word, word) if word != place.name else value for word in place.words.split())]
        given = given if "--prompts" in given else ["--", *given]
    options = ["--model", "./none"] if place.verb == "data check" and place.name != "--model" else []
    options += ["--method", "dpo"] if place.verb == "plan" and place.name != "--method" else []
    with pytest.raises(SystemExit) as leaving:
        main([*place.verb.split(), *options, *given])
    shown = capsys.readouterr()
    assert "\x1b" not in shown.err + shown.out
    assert leaving.value.code in (0, 2), (value, shown)
    if leaving.value.code == 0:
        return None
    assert shown.err.startswith("error: "), (value, shown)
    assert (shown.out, shown.err.count("\n")) == ("", 1), (value, shown)
    return shown.err


def test_every_verb_is_looked_at() -> None:
    assert {each.verb for each in PLACES} == VERBS.keys() - {"cache list", "cache clean"}
    assert {"generate --temperature", "generate --top-p", "chat --temperature"} <= set(map(str, NUMBERS))
    assert {"reward merge FOLDER", "score MODEL", "sft --set", "report RUN"} <= set(map(str, OTHERS))


@pytest.mark.parametrize("place", NUMBERS, ids=str)
def test_what_is_no_number_in_range_is_refused_by_name(
    place: Place, words: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    for value in NO_NUMBERS:
        line = refused(place, value, words, capsys)
        assert line is not None and place.name in line, (value, line)
        assert repr(value) in line or (value in FLOATS and repr(float(value)) in line), (value, line)


@pytest.mark.parametrize("place", OTHERS, ids=str)
def test_no_text_is_met_with_a_traceback(
    place: Place, words: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    for value in TEXTS:
        refused(place, value, words, capsys)


@pytest.mark.parametrize("place", [each for each in PLACES if each.name == "--set" and "RECIPE" in each.words], ids=str)
def test_numbers_of_recipes_are_refused_by_name(
    place: Place, words: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    for setting in SETTINGS:
        line = refused(place, setting, words, capsys)
        assert line is not None and setting.partition("=")[0] in line, (setting, line)
