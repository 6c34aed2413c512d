"""The Python API: recipes in every form, the same errors as the command line, runs to look at, models to use."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

import prefine
from prefine.errors import CheckpointError, DataError, ModelError, PrefineError, RecipeError
from prefine.recipe.loading import load_recipe, resolved_yaml
from prefine.recipe.stage import StageRecipe
from prefine.row_list import Rows
from tests.training import tiny

Make = Callable[..., StageRecipe]


def values(made: StageRecipe) -> dict[str, Any]:
    """A recipe as a program writes it."""
    found: dict[str, Any] = made.model_dump(mode="json", exclude_unset=True)
    return found


@pytest.fixture(scope="module")
def trained(model: Path, data: Path, no_cache_outside: None, tmp_path_factory: pytest.TempPathFactory) -> prefine.Run:
    """A finished DPO run of two steps."""
    made = tiny.recipe("dpo", tmp_path_factory.mktemp("api") / "run", model, data, {"training.max_steps": 2})
    return prefine.dpo(made, display=False)


# --- Recipes ---------------------------------------------------------------------------------------------------------


def test_a_path_a_dict_and_an_object_give_one_recipe(make: Make, tmp_path: Path) -> None:
    made = make("dpo", changes={"dpo.beta": 0.3})
    path = tmp_path / "dpo.yaml"
    path.write_text(resolved_yaml(made))
    for recipe in (path, str(path), values(made), made):
        assert prefine.load_recipe("dpo", recipe) == made
        changed = prefine.load_recipe("dpo", recipe, data={"train": "a.jsonl"}, **{"training.epochs": 3.0}, lora=None)
        assert (changed.data.train, changed.data.heldout_fraction, changed.training.epochs) == ("a.jsonl", 0.2, 3.0)
        assert (changed.dpo, changed.lora) == (made.dpo, None)  # type: ignore[attr-defined]
    assert prefine.load_recipe("dpo") == load_recipe(None, [], type(made))


def test_paths_and_tuples_are_taken_as_recipes_have_them(tmp_path: Path) -> None:
    made = prefine.load_recipe("sft", {"model": {"name": tmp_path}}, data={"train": (tmp_path / "a", "b")})
    assert (made.model.name, made.data.train) == (str(tmp_path), [str(tmp_path / "a"), "b"])


def test_defaults_that_follow_from_other_fields_follow_from_changed_ones(make: Make) -> None:
    assert prefine.load_recipe("dpo", {}, dpo={"loss": "ipo"}).dpo.beta == 1.0


@pytest.mark.parametrize(
    ("recipe", "overrides", "problem"),
    [
        ({}, {"epochs": 2}, "keyword epochs: epochs is not a field. Did you mean training.epochs?"),
        ({}, {"training": {"epochs": -1}}, "keyword training: training.epochs is -1, but must be greater than 0"),
        ({"training": {"epochs": -1}}, {}, "recipe: training.epochs is -1, but must be greater than 0"),
        ({"run": object()}, {}, "recipe: a value is neither text, number, list nor mapping"),
        (3, {}, "recipe is of type int"),
        ("./none.yaml", {}, "There is no recipe none.yaml"),
    ],
)
def test_recipes_that_are_not_valid(recipe: Any, overrides: dict[str, Any], problem: str) -> None:
    with pytest.raises(RecipeError) as caught:
        prefine.dpo(recipe, **overrides)
    assert str(caught.value).startswith(problem)


def test_a_recipe_of_another_stage(make: Make) -> None:
    with pytest.raises(RecipeError, match="recipe is a SftRecipe, not a DpoRecipe"):
        prefine.dpo(make("sft"))
    with pytest.raises(RecipeError, match=r"^stage is 'cpo'. Write one of sft, reward, dpo, kto, orpo, ppo"):
        prefine.load_recipe("cpo")  # type: ignore[call-overload]


# --- Training --------------------------------------------------------------------------------------------------------


def test_it_trains_as_the_command_line_does(trained: prefine.Run, make: Make, tmp_path: Path) -> None:
    other = make("dpo", "other", {"training.max_steps": 2})
    tiny.train(other)
    assert tiny.differences(trained.path, Path(other.run)) == []


def test_rows_in_memory_train_as_those_of_a_file_do(trained: prefine.Run, make: Make, data: Path) -> None:
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    recipe = make("dpo", "memory", {"training.max_steps": 2})
    run = prefine.dpo(recipe, data={"train": rows}, display=False)
    assert tiny.differences(trained.path, run.path) == []
    assert prefine.dpo(recipe, data={"train": rows}, resume=True, display=False).status == "finished"
    pandas = pytest.importorskip("pandas")
    framed = prefine.load_recipe("dpo", recipe, data={"train": pandas.DataFrame(rows)})
    assert framed.data.train == run.recipe["data"]["train"]  # named by their content


def test_rows_in_memory_that_cannot_be_read() -> None:
    with pytest.raises(DataError, match="a generator, which can be read only once"):
        prefine.load_recipe("sft", data={"train": (row for row in [{"prompt": "a"}])})


def test_functions_are_called_with_what_metrics_hold(make: Make) -> None:
    steps: list[tuple[int, Mapping[str, float]]] = []
    evaluations: list[int] = []
    run = prefine.sft(
        make("sft", changes={"training.max_steps": 3}),
        display=False,
        on_step=lambda step, metrics: steps.append((step, metrics)),
        on_evaluation=lambda step, metrics: evaluations.append(step),
    )
    logged = [
        {name: row[name] for name in metrics} for row, (_, metrics) in zip(run.metrics("train"), steps, strict=True)
    ]
    assert logged == [metrics for _, metrics in steps]
    assert [step for step, _ in steps] == [1, 2, 3] and steps[0][1].keys() >= {"loss", "epoch"}
    assert evaluations == [row["step"] for row in run.metrics("heldout")] == [0, 3]


def test_a_callback_that_raises_ends_the_run_which_can_be_resumed(make: Make) -> None:
    class EnoughError(Exception):
        pass

    def enough(step: int, metrics: Mapping[str, float]) -> None:
        if step == 2:
            raise EnoughError

    whole, cut = make("sft", "whole", {"training.max_steps": 3}), make("sft", "cut", {"training.max_steps": 3})
    with pytest.raises(EnoughError):
        prefine.sft(cut, display=False, on_step=enough)
    assert prefine.Run(cut.run).status == "failed"
    assert tiny.manifest(Path(cut.run))["ended_by"] == "EnoughError: "
    run = prefine.sft(cut, resume=True, display=False)
    assert tiny.differences(prefine.sft(whole, display=False).path, run.path) == []


def test_handlers_of_signals_are_put_back_and_other_threads_may_train(make: Make) -> None:
    mine = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
        prefine.sft(make("sft", "here", {"training.max_steps": 1}), display=False)
        there: list[prefine.Run] = []
        made = make("sft", "there", {"training.max_steps": 1})
        thread = threading.Thread(target=lambda: there.append(prefine.sft(made, display=False)))
        thread.start()
        thread.join()
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == handlers
        assert tiny.differences(Path(make("sft", "here").run), there[0].path) == []
    finally:
        signal.signal(signal.SIGTERM, mine)


def test_a_second_run_may_be_on_another_device(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    state = AcceleratorState()
    monkeypatch.setitem(state._shared_state, "device", torch.device("meta"))  # as if the first had been on a GPU
    assert prefine.sft(make("sft", changes={"training.max_steps": 1}), display=False).status == "finished"


@pytest.mark.parametrize(("display", "said"), [(True, "step 1/1"), (False, ""), (None, "")])
def test_what_is_shown(make: Make, display: bool | None, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    prefine.sft(make("sft", changes={"training.max_steps": 1}), display=display)
    out = capsys.readouterr().out
    assert said in out if said else not out


# --- Errors ----------------------------------------------------------------------------------------------------------


def test_errors_are_those_of_the_command_line(
    make: Make, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefine.cli.app import main

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "trackio" else real(name))
    for changes in ({"data.train": "./none.jsonl"}, {"model.name": "./nothing"}, {"training.trackers": ["trackio"]}):
        made = make("dpo", changes=changes)
        with pytest.raises(PrefineError) as caught:
            prefine.dpo(made)
        with pytest.raises(SystemExit):
            main(["dpo", tiny.written(made, tmp_path / "recipe.yaml")])
        assert capsys.readouterr().err == f"error: {caught.value.lines[0]}\n"


# --- Runs ------------------------------------------------------------------------------------------------------------


def test_a_run_is_read_from_its_folder(trained: prefine.Run) -> None:
    run = prefine.Run(str(trained.path))
    assert (run.stage, run.status, run.recipe["dpo"]["beta"]) == ("dpo", "finished", 0.1)
    assert [row["step"] for row in run.metrics("train")] == [1, 2]
    assert {row["kind"] for row in run.metrics()} == {"train", "heldout"}
    assert run.evaluation == json.loads((trained.path / "evaluation.json").read_text())
    assert run.report.is_file()
    assert run.figures()["steps"] == "2"
    assert repr(run).startswith(f"<Run {trained.path}: dpo, finished. ")
    assert prefine.load_recipe("sft", model={"name": run}).model.name == str(trained.path)


def test_metrics_become_a_data_frame(trained: prefine.Run) -> None:
    pytest.importorskip("pandas")
    frame = trained.metrics("train").dataframe()
    assert frame["step"].tolist() == [1, 2]
    assert frame["loss"].tolist() == [row["loss"] for row in trained.metrics("train")]


def test_a_notebook_shows_a_table_that_holds_no_markup_of_others(trained: prefine.Run, tmp_path: Path) -> None:
    page = trained._repr_html_()
    assert f'<a href="{trained.report.as_posix()}"' in page and "finished" in page and trained.result in page
    odd = tmp_path / "<b>run"
    odd.mkdir()
    manifest = json.loads((trained.path / "manifest.json").read_text()) | {"stage": "<script>"}
    (odd / "manifest.json").write_text(json.dumps(manifest))
    page = prefine.Run(odd)._repr_html_()
    assert "<script>" not in page and "<b>" not in page and "&lt;script&gt;" in page


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no run"):
        prefine.Run(tmp_path)


def test_looking_at_runs_and_recipes_needs_no_torch(trained: prefine.Run) -> None:
    code = f"""
import sys, prefine
assert not [name for name in sys.modules if name.startswith("prefine.")], "importing prefine imports nothing"
run = prefine.Run({str(trained.path)!r})
run.metrics(), run.evaluation, run.report, run._repr_html_(), repr(run)
prefine.load_recipe("ppo", advantage="grpo"), prefine.errors.PrefineError
assert not {{"torch", "transformers"}} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_public_names_are_there_and_no_others() -> None:
    assert all(hasattr(prefine, name) for name in prefine.__all__)
    assert set(prefine.__all__) <= set(dir(prefine))
    with pytest.raises(AttributeError, match="module 'prefine' has no attribute 'cpo'"):
        prefine.cpo  # type: ignore[attr-defined]  # noqa: B018


# --- Models ----------------------------------------------------------------------------------------------------------


def test_a_model_generates_from_prompts_turns_and_rows(trained: prefine.Run) -> None:
    prompts: list[Any] = ["question 1", [{"role": "user", "content": "question 1"}], {"prompt": "question 1", "id": 7}]
    rows = trained.model.generate(prompts, temperature=0, max_new_tokens=5)
    assert isinstance(rows, Rows)
    assert len({row["completion"] for row in rows}) == 1
    assert [row["prompt"] for row in rows] == ["question 1", prompts[1], "question 1"]
    assert (rows[2]["id"], rows[0]["tokens"], rows[0]["finish_reason"]) == (7, 5, "length")
    both = prefine.generate(trained, ["question 1"], samples=2, max_new_tokens=5, seed=3)
    assert [row["sample"] for row in both] == [0, 1]
    assert both[1]["completion"] == trained.model.generate(["question 1"], max_new_tokens=5, seed=4)[0]["completion"]
    assert trained.model.generate([]) == []


def test_answers_go_to_a_reward_model_as_they_are(trained: prefine.Run, reward_run: Path) -> None:
    answers = trained.model.generate(["question 1", "question 2"], max_new_tokens=5)
    reward = prefine.load(reward_run)
    scored = reward.score(answers)
    assert [row["completion"] for row in scored] == [row["completion"] for row in answers]
    pair = {"prompt": "question 1", "chosen": "good", "rejected": "bad"}
    (both,) = prefine.score(reward_run, [pair])
    alone = reward.score([{"prompt": "question 1", "response": answer} for answer in ("good", "bad")])
    assert [both["score_of_chosen"], both["score_of_rejected"]] == pytest.approx([row["score"] for row in alone])


def test_prompts_are_checked_before_a_model_is_loaded(trained: prefine.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing is loaded for prompts that cannot be used")

    monkeypatch.setattr("prefine.models.loading.load.load_model", never)
    with pytest.raises(DataError, match=r"^1 of 2 prompts cannot be used; prompts\[1\]: prompt"):
        prefine.generate(trained, ["a", " "])


@pytest.mark.parametrize(
    ("use", "kind", "problem"),
    [
        (lambda run, reward: prefine.load("./nothing"), ModelError, "there is no folder './nothing'"),
        (lambda run, reward: run.model.score([{"prompt": "a", "response": "b"}]), ModelError, "has no score head"),
        (lambda run, reward: prefine.load(reward).generate(["a"]), ModelError, "generates no text"),
        (lambda run, reward: run.model.generate("a"), DataError, "prompts is of type str, not a list"),
        (lambda run, reward: run.model.generate(["a", " "]), DataError, "1 of 2 prompts cannot be used; prompts[1]: "),
        (lambda run, reward: run.model.generate(["a"], top_p=2), RecipeError, "top_p is 2; it must be"),
        (
            lambda run, reward: run.model.generate(["a"], max_new_tokens=0),
            RecipeError,
            "max_new_tokens is 0; it must be",
        ),
        (lambda run, reward: run.model.generate(["a"], samples=0), RecipeError, "samples is 0"),
        (lambda run, reward: prefine.load(reward).score([{"prompt": "a"}]), DataError, "rows"),
        (
            lambda run, reward: prefine.load(run, chat_template="./x.jinja").generate(["a"]),
            ModelError,
            "chat_template: './x",
        ),
        (lambda run, reward: prefine.load(run, dtype="float16"), RecipeError, "dtype: 'float16'"),
    ],
)
def test_what_a_model_refuses(
    use: Any, kind: type[PrefineError], problem: str, trained: prefine.Run, reward_run: Path
) -> None:
    with pytest.raises(kind) as caught:
        use(trained, reward_run)
    assert problem in str(caught.value)
    assert "model.name" not in str(caught.value) and "memory:" not in str(caught.value)
