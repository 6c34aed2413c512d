"""A recipe either becomes a complete, checked object, or one line says everything that is wrong with it."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, model_validator

from prefine.errors import RecipeError
from prefine.recipe.loading import RecipeSection, load_recipe, resolved_yaml


class Model(RecipeSection):
    name: str
    dtype: Literal["bfloat16", "float32"] = "bfloat16"


class Data(RecipeSection):
    train: Path | None = None
    columns: tuple[str, ...] = ()


class Dpo(RecipeSection):
    beta: Annotated[float, Field(gt=0)] = 0.1
    loss: Literal["sigmoid", "ipo", "hinge"] = "sigmoid"
    seed: int | str = 0

    @model_validator(mode="after")
    def _hinge_needs_a_small_beta(self) -> Dpo:
        if self.loss == "hinge" and self.beta > 1:
            raise ValueError("with loss hinge, beta must be at most 1")
        return self


class Stage(RecipeSection):
    files: tuple[Data, ...] = ()
    named: dict[str, Dpo] = Field(default_factory=dict)


class Recipe(RecipeSection):
    model: Model
    data: Data = Data()
    dpo: Dpo = Dpo()
    stage: Stage | None = None
    learning_rate: float = 1e-4
    packed: bool = True
    note: str = ""


def write(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "dpo.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def load(tmp_path: Path, text: str | bytes, *overrides: str) -> Recipe:
    return load_recipe(write(tmp_path, text), ["model.name=m", *overrides], Recipe)


def refusal(tmp_path: Path, text: str | bytes, *overrides: str) -> str:
    """The whole message, the folder's name taken out."""
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, text, *overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(f"{tmp_path}/", "")


def refused_lines(tmp_path: Path, text: str, *overrides: str) -> tuple[str, ...]:
    """What a console shows, the folder's name taken out."""
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, text, *overrides)
    return tuple(line.replace(f"{tmp_path}/", "") for line in caught.value.lines)


def test_fields_of_a_file_and_of_overrides_meet_the_later_one_holding(tmp_path: Path) -> None:
    text = "model: {name: a, dtype: float32}\ndpo:\n  beta: 0.3\n"
    recipe = load_recipe(write(tmp_path, text), ["dpo.beta=0.5", "dpo.beta=0.7", "data.train=my file.jsonl"], Recipe)
    assert recipe.model == Model(name="a", dtype="float32")
    assert recipe.dpo.beta == 0.7
    assert recipe.data.train == Path("my file.jsonl")


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n", "\ufeff"])
def test_an_empty_file_is_the_defaults(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, text) == Recipe(model=Model(name="m")) == load_recipe(None, ["model.name=m"], Recipe)


@pytest.mark.parametrize(
    ("written", "value"),
    [("1e-5", 1e-5), ("1E5", 1e5), ("5e+2", 500.0), ("1_000.5", 1000.5), (".5", 0.5), ("3", 3.0), ("-2.e3", -2000.0)],
)
def test_numbers_are_numbers_however_they_are_written(tmp_path: Path, written: str, value: float) -> None:
    assert load(tmp_path, f"learning_rate: {written}").learning_rate == value
    assert load(tmp_path, "", f"learning_rate={written}").learning_rate == value


@pytest.mark.parametrize("written", ["12:30", "2026-01-01", "012", "1e", "e5", "1.2.3", "#fff", "a=b", "C:\\x"])
def test_text_stays_text(tmp_path: Path, written: str) -> None:
    assert load(tmp_path, "", f"note={written}").note == written


def test_overrides_take_null_lists_and_sections(tmp_path: Path) -> None:
    recipe = load(tmp_path, "data: {train: x}", "data.train=null", "data.columns=[a, b]", "stage={files: [{}]}")
    assert recipe.data == Data(train=None, columns=("a", "b"))
    assert recipe.stage == Stage(files=(Data(),))
    assert load(tmp_path, "stage: null", "stage.named.x.beta=2").stage == Stage(named={"x": Dpo(beta=2.0)})


def test_an_override_leaves_an_alias_of_its_section_alone(tmp_path: Path) -> None:
    text = "stage:\n  named:\n    a: &a {beta: 2}\n    b: *a\n    c: {<<: *a, seed: 3}\n"
    recipe = load(tmp_path, text, "stage.named.b.beta=5")
    assert recipe.stage is not None
    assert {name: (dpo.beta, dpo.seed) for name, dpo in recipe.stage.named.items()} == {
        "a": (2, 0),
        "b": (5, 0),
        "c": (2, 3),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dpo: {bta: 1}", "dpo.yaml: dpo.bta is not a field. Did you mean dpo.beta?"),
        ("beta: 1", "dpo.yaml: beta is not a field. Did you mean dpo.beta?"),
        ("dpo: {learning_rat: 1}", "dpo.yaml: dpo.learning_rat is not a field. Did you mean learning_rate?"),
        ("dpo: {b: 1}", "dpo.yaml: dpo.b is not a field. The fields of dpo are beta, loss, seed."),
        ("modle: {}", "dpo.yaml: modle is not a field. Did you mean model?"),
        ("Learning-Rate: 1", "dpo.yaml: Learning-Rate is not a field. Did you mean learning_rate?"),
        ("dpo: {zzz: 1}", "dpo.yaml: dpo.zzz is not a field. The fields of dpo are beta, loss, seed."),
        ("stage: {files: [{trian: x}]}", "dpo.yaml: stage.files[0].trian is not a field."),
        ("stage: {named: {x: {bta: 1}}}", "dpo.yaml: stage.named.x.bta is not a field."),
        ("1: x", "dpo.yaml: 1 is not a field. The fields of the recipe are model, data,"),
        ("dpo: {beta: -1}", "dpo.yaml: dpo.beta is -1, but must be greater than 0. Change it, or leave it out for "
                            "the default, 0.1."),
        ('dpo: {beta: "1"}', 'dpo.yaml: dpo.beta is "1", but must be a valid number. Write a number, without quotes.'),
        ("dpo: {beta: .nan}", "dpo.yaml: dpo.beta is NaN, but must be a finite number."),
        ("dpo: {seed: [1]}", "dpo.yaml: dpo.seed is [1], but must be a valid integer or a valid string."),
        ("dpo: {loss: sigmod}", """dpo.yaml: dpo.loss is "sigmod", but must be 'sigmoid', 'ipo' or 'hinge'. Did """
                                "you mean sigmoid?"),
        ("dpo: {loss: hinge, beta: 2}", "dpo.yaml: dpo: with loss hinge, beta must be at most 1."),
        ("dpo: 3", "dpo.yaml: dpo is 3, but must be a section. Its fields are beta, loss, seed."),
        ("dpo:", "dpo.yaml: dpo is null, but must be a section."),
        ("stage: [1]", "dpo.yaml: stage is [1], but must be a section. Its fields are files, named."),
        ("packed: maybe", 'dpo.yaml: packed is "maybe", but must be a valid boolean. Write true or false.'),
        ("note: 12", "dpo.yaml: note is 12, but must be a valid string. Put it in quotes"),
        ("data: {columns: a}", 'dpo.yaml: data.columns is "a", but must be a valid array. Write a list'),
        ('note: "\\ud800"', "dpo.yaml: a value has half a surrogate pair"),
        ("note: !!binary aGk=", "dpo.yaml: a value is neither text, number, list nor mapping"),
        ("data: &d {x: *d}", "dpo.yaml, line 1: an anchor (&name) contains itse"),
    ],
)  # fmt: skip
def test_a_field_that_is_not_valid_names_itself_its_value_the_rule_and_the_remedy(
    tmp_path: Path, text: str, message: str
) -> None:
    assert refusal(tmp_path, text).startswith(message)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(RecipeError, match=r"recipe: model\.name is missing\. .*--set model\.name=VALUE"):
        load_recipe(None, ["model.dtype=float32"], Recipe)


def test_several_problems_are_told_at_once_each_with_its_source_in_a_line_of_its_own(tmp_path: Path) -> None:
    lines = refused_lines(tmp_path, "dpo: {bta: 1}\npacked: 3\n", "dpo.seed=1.5", "dop.beta=1")
    assert lines == (
        "4 settings are not valid:",
        '  --set dpo.seed=1.5: dpo.seed is 1.5, but must be a valid integer or a valid string. Put it in quotes: "…".',
        "  dpo.yaml: dpo.bta is not a field. Did you mean dpo.beta?",
        "  dpo.yaml: packed is 3, but must be a valid boolean. Write true or false.",
        "  --set dop.beta=1: dop is not a field. Did you mean dpo?",
    )


def test_overrides_that_cannot_be_read_are_told_at_once(tmp_path: Path) -> None:
    lines = refused_lines(tmp_path, "", "a", "dpo.beta=1", "b=[1")
    assert lines[:2] == (
        "2 settings are not valid:",
        "  --set a is not of the form field=value. Write --set section.field=value.",
    )
    assert lines[2].startswith("  --set b=[1, line 1: invalid YAML")


def test_each_line_is_one_line_whatever_is_quoted_in_it(tmp_path: Path) -> None:
    lines = refused_lines(tmp_path, '"x\\ny": 1\nz: 2\n')
    assert len(lines) == 3
    assert "\n" not in "".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: [1\n", "dpo.yaml, line 3: invalid YAML: "),
        ("a: 1\n b: 2\n", "dpo.yaml, line 2: invalid YAML: "),
        ("packed: true\ndpo:\n  beta: 1\n  beta: 2\n", "dpo.yaml, line 4: beta is given twice. Remove one"),
        ("- 1\n", "dpo.yaml holds a list, not fields"),
        ("hello", "dpo.yaml holds a single value, not fields"),
        ("a: 1\n---\nb: 2\n", "dpo.yaml, line 2: invalid YAML: "),
        ("a: !!python/object/apply:os.getcwd []", "dpo.yaml, line 1: invalid YAML: could not determine a constr"),
        ("a: !!bool x", "dpo.yaml: invalid YAML: a value does not fit its tag"),
        ("a: " + "9" * 5000, "dpo.yaml: invalid YAML: a value does not fit its tag"),
        ("a: *x", "dpo.yaml, line 1: invalid YAML: found undefined alias 'x'"),
        ("? [1]\n: 2", "dpo.yaml, line 1: invalid YAML: found unhashable key"),
        ("a: 1\nb: \x00", "dpo.yaml, line 2: a control character"),
        ("a: " + "[" * 5000, "dpo.yaml: invalid YAML: nested too deep"),
        (b"\xff\xfe\x00", "dpo.yaml is not a text file in UTF-8"),
        (b"#" * (256 * 1024 + 1), "dpo.yaml is larger than 256 KiB"),
        ("a: &x [*x]", "dpo.yaml, line 1: an anchor (&name) contains itself"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_with_its_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    assert refusal(tmp_path, text).startswith(message)


def aliases(first: str, levels: int) -> str:
    """Each level holds the one before nine times."""
    lines = [f"a0: &a0 {first}"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [aliases("x", 10), aliases("{k: v}", 10), aliases("x" * 100_000, 4), aliases("{k: v}", 9) + "\nz: {<<: *a8}"],
)
def test_aliases_that_would_fill_memory_are_refused_before_they_are_written_out(tmp_path: Path, text: str) -> None:
    tracemalloc.start()
    try:
        assert ": its aliases (*name) stand for more than 100000 values or 1024 KiB of text." in refusal(tmp_path, text)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def test_a_few_aliases_are_written_out(tmp_path: Path) -> None:
    recipe = load(tmp_path, "model: {name: &n a}\ndata: {train: *n}\n")
    assert recipe.data.train == Path("a")


def test_a_file_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"There is no recipe .*nowhere\.yaml\. Check the path"):
        load_recipe(tmp_path / "nowhere.yaml", [], Recipe)
    with pytest.raises(RecipeError, match="is a folder, not a recipe"):
        load_recipe(tmp_path, [], Recipe)
    with pytest.raises(RecipeError, match="cannot be read: Not a directory"):
        load_recipe(write(tmp_path, "") / "x", [], Recipe)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("dpo.beta", "--set dpo.beta is not of the form field=value"),
        ("=1", "--set =1 is not of the form field=value"),
        ("dpo..beta=1", "--set dpo..beta=1 is not of the form field=value"),
        ("dpo.beta=[1", "--set dpo.beta=[1, line 1: invalid YAML: "),
        ("dpo.bta=1", "--set dpo.bta=1: dpo.bta is not a field. Did you mean dpo.beta?"),
        ("packed.x=1", "--set packed.x=1: packed is true, not a section. Set packed itself."),
        ("dpo.beta.x=1", '--set dpo.beta.x=1: dpo.beta is {"x": 1}, but must be a valid number.'),
        ("dpo={beta: -1}", "--set dpo={beta: -1}: dpo.beta is -1, but must be greater than 0."),
    ],
)
def test_an_override_that_is_not_valid_is_named(tmp_path: Path, override: str, message: str) -> None:
    assert refusal(tmp_path, "packed: true", override).startswith(message)


def test_a_long_value_is_shortened(tmp_path: Path) -> None:
    assert len(refusal(tmp_path, f"packed: {'x' * 10_000}")) < 200


recipes = st.builds(
    Recipe,
    model=st.builds(Model, name=st.text(st.characters(exclude_categories=["Cs"]))),
    data=st.builds(Data, columns=st.lists(st.text(st.characters(exclude_categories=["Cs"]))).map(tuple)),
    dpo=st.builds(
        Dpo,
        beta=st.floats(min_value=0, max_value=1, exclude_min=True),
        seed=st.integers() | st.sampled_from(["1e-5", "0x1F", "no", "~", "", "1_0", "<<", "=", ".inf", "2026-01-01"]),
    ),
    learning_rate=st.floats(allow_nan=False, allow_infinity=False),
    note=st.text(st.characters(exclude_categories=["Cs"])),
)


@settings(max_examples=200, deadline=None)
@given(recipe=recipes)
def test_the_resolved_recipe_loads_back_equal(recipe: Recipe, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "resolved.yaml"
    path.write_text(resolved_yaml(recipe), encoding="utf-8", newline="")
    assert load_recipe(path, [], Recipe) == recipe


def test_the_resolved_recipe_names_every_field_in_the_models_order() -> None:
    text = resolved_yaml(Recipe(model=Model(name="m"), data=Data(train=Path("x.jsonl"))))
    assert text.startswith("model:\n  name: m\n  dtype: bfloat16\ndata:\n  train: x.jsonl\n  columns: []\ndpo:\n")
    assert "learning_rate: 0.0001\n" in text
