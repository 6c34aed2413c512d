"""A run goes on only as what it was, in one process, and once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefine.errors import CheckpointError, DataError, PrefineError, Stopped
from prefine.recipe.stage import StageRecipe
from prefine.runs.directory import RunDirectory
from prefine.training.loop.checkpointer import checkpoint_to_resume
from prefine.training.loop.loop import Loop
from prefine.training.run import run_stage as session
from tests.training import tiny

Make = Callable[..., StageRecipe]


@pytest.fixture
def cut(make: Make, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], StageRecipe]:
    """cut({...}): a DPO run with these changes, stopped after its second step."""

    def stopped(changes: dict[str, Any]) -> StageRecipe:
        made = make("dpo", "cut", changes)
        real = Loop.__post_init__

        def asked(loop: Loop) -> None:
            real(loop)
            loop.stop_requested = lambda: loop.position.step == 2

        with monkeypatch.context() as patched:
            patched.setattr(Loop, "__post_init__", asked)
            with pytest.raises(Stopped):
                tiny.train(made)
        return made

    return stopped


def refusal(made: StageRecipe, resume: bool = True) -> str:
    """The error a run is refused with; nothing of what is there may change."""
    run = Path(made.run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(PrefineError) as raised:
        tiny.train(made, resume=resume)
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    return f"{type(raised.value).__name__}: {raised.value}"


def test_another_recipe_is_refused_with_the_fields_that_differ(
    cut: Callable[..., StageRecipe], make: Make, tmp_path: Path
) -> None:
    cut({})
    for changes, told in (
        ({"training.learning_rate": 0.5}, "(training.learning_rate was 0.01 and is 0.5)"),
        (
            {"dpo.loss": "ipo", "lora.r": 8},
            "(dpo.beta was 0.1 and is 1.0, dpo.loss was 'sigmoid' and is 'ipo', lora.r was 4 and is 8)",
        ),
        ({"lora": None}, "(lora.alpha was 8.0 and is None, lora.dora was False and is None, lora.dropout was "),
        ({"data.heldout_fraction": 0.3}, "(data.heldout_fraction was 0.2 and is 0.3)"),
    ):
        said = refusal(make("dpo", "cut", changes))
        assert said.startswith("CheckpointError: --resume: the recipe differs from the one this run began with (")
        assert told in said
        assert said.endswith("Resume with the same recipe and --set, or start a run under another name.")


def test_what_does_not_change_the_result_may_differ(cut: Callable[..., StageRecipe], make: Make) -> None:
    cut({})
    tiny.train(make("dpo", "whole"))
    free = {"training.save_every_steps": 3, "training.keep_checkpoints": 5}
    made = make("dpo", "cut", free)
    tiny.train(made, resume=True)
    assert not tiny.differences(Path(made.run).with_name("whole"), Path(made.run))


def test_changed_data_is_refused(cut: Callable[..., StageRecipe], tmp_path: Path) -> None:
    """One byte of one answer: the rows' log-probabilities are no longer the reference's."""
    file = tiny.write_rows(tmp_path / "pairs.jsonl", tiny.pairs(26))
    made = cut({"data.train": str(file)})
    kept = file.read_text()
    file.write_text(kept.replace("good answer", "fine answer", 1))
    assert "the data, the tokenizer or the data settings differ from those that this run started with" in refusal(made)
    file.unlink()
    assert "DataError" in refusal(made)
    file.write_text(kept)
    tiny.train(made, resume=True)


def test_a_changed_template_or_base_model_is_refused(cut: Callable[..., StageRecipe], tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "T")
    made = cut({"model.name": str(model)})
    tiny.save_model(model, template=tiny.CHATML.replace("\\n", " "))
    assert "the data, the tokenizer or the data settings differ from those that this run started with" in refusal(made)
    tiny.save_model(model, seed=8)
    assert f"--resume: files of {model} have changed since this run began: the base's weights" in refusal(made)
    tiny.save_model(model)
    config = json.loads((model / "config.json").read_text())
    for file, changed, told in (
        (
            "config.json",
            {**config, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
            "the base's config",
        ),
        ("config.json", {**config, "eos_token_id": 0}, "the generation settings or token ids"),
        ("generation_config.json", {"eos_token_id": [0, 1]}, "the generation settings or token ids"),
    ):
        kept = (model / file).read_text()
        (model / file).write_text(json.dumps(changed))
        assert f"--resume: files of {model} have changed since this run began: {told}" in refusal(made)
        (model / file).write_text(kept)
    (model / "config.json").write_text(json.dumps({**config, "transformers_version": "0", "use_cache": False}))
    tiny.train(made, resume=True)


def test_a_finished_run_says_so(make: Make) -> None:
    made = make("sft", changes={"training.max_steps": 1})
    tiny.train(made)
    before = tiny.weights(Path(made.run))
    assert "is finished already" in tiny.train(made, resume=True)
    code, said = tiny.Command("sft", tiny.written(made, Path(made.run) / "again.yaml"), "--resume").end()
    assert (code, said.count("is finished already"), said.count("\n")) == (0, 1, 1)
    assert before.keys() == tiny.weights(Path(made.run)).keys()
    assert "already holds a run. Add --resume" in refusal(made, resume=False)


def test_a_second_process_is_refused(cut: Callable[..., StageRecipe]) -> None:
    made = cut({})
    with RunDirectory.create(Path(made.run), resume=True):
        code, said = tiny.Command("dpo", tiny.written(made, Path(made.run) / "cut.yaml"), "--resume").end()
    assert code == 2
    assert said == f"error: {made.run} is in use by another process. Wait for it to end, or choose another name.\n"


def test_a_run_without_a_valid_checkpoint_is_refused_not_begun_again(cut: Callable[..., StageRecipe]) -> None:
    made = cut({"training.save_every_steps": None})
    (state,) = (Path(made.run) / "checkpoints").glob("step-*/state.json")
    state.write_text("{}")
    said = ""
    with pytest.raises(CheckpointError) as raised:
        tiny.train(made, resume=True)
    said = str(raised.value)
    assert "holds checkpoints, but none is valid" in said
    assert "delete that folder to start again" in said


def test_a_damaged_checkpoint_within_a_step_is_no_reason_to_begin_again(cut: Callable[..., StageRecipe]) -> None:
    made = cut({"training.save_every_steps": None})
    run = RunDirectory(Path(made.run))
    run.run_id = tiny.manifest(run.path)["run_id"]
    (saved,) = run.checkpoints.glob("step-*")
    within = run.checkpoints / "within-step"
    within.mkdir()
    saved.rename(within / saved.name)
    found = checkpoint_to_resume(run)
    assert found is not None
    assert found.path == within / saved.name
    (within / saved.name / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match="holds checkpoints, but none is valid"):
        checkpoint_to_resume(run)


def test_a_damaged_newest_checkpoint_is_passed_over_aloud(cut: Callable[..., StageRecipe], make: Make) -> None:
    made = cut({})
    newest = Path(made.run) / "checkpoints" / "step-00000002" / "weights.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    said = tiny.train(made, resume=True)
    assert f"warning: {newest.parent} is skipped: weights.safetensors has" in said
    assert "resuming after step 1\n" in said
    whole = make("dpo", "whole")
    tiny.train(whole)
    assert not tiny.differences(Path(whole.run), Path(made.run))


def test_a_start_that_was_refused_can_be_repeated(make: Make, tmp_path: Path) -> None:
    """Nothing of a refused start stands in the way of the same command once its cause is put right."""
    file = tmp_path / "pairs.jsonl"
    made = make("dpo", changes={"data.train": str(file), "training.max_steps": 1})
    with pytest.raises(DataError):
        tiny.train(made)
    file.write_text('{"prompt": "only a prompt"}\n' * 30)
    with pytest.raises(DataError):
        tiny.train(made)
    tiny.write_rows(file, tiny.pairs(26))
    tiny.train(made)
    assert not (Path(made.run) / "quarantine.jsonl").exists()


def test_rows_prepared_by_a_start_that_came_to_nothing_are_not_used(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between its rows and its manifest, a run is not yet one: another recipe may take its name."""

    def killed(*args: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr(session, "run_provenance", killed)
        with pytest.raises(ZeroDivisionError):
            tiny.train(make("dpo", "run"))
    made = make("dpo", "run", {"data.heldout_fraction": 0.5, "training.max_steps": 1})
    tiny.train(made)
    assert tiny.manifest(Path(made.run))["data"]["heldout"]["rows"] > 7


def test_paths_with_brackets_are_shown_as_they_are(make: Make) -> None:
    """rich would read [/b] as markup, and break a long line in two."""
    made = make("sft", "run [/b] " + "x" * 100, {"training.max_steps": 1})
    assert f"report in {made.run}/report.html\n" in tiny.train(made)


@pytest.mark.parametrize("part", ["train", "heldout"])
def test_a_source_that_is_not_there_is_refused_before_anything_is_made(make: Make, part: str) -> None:
    made = make("dpo", "sourceless", {f"data.{part}": "nowhere.jsonl"})
    with pytest.raises(DataError, match=r"nowhere\.jsonl: no such file"):
        tiny.train(made, resume=False)
    assert not Path(made.run).exists()


def test_a_folder_that_prefine_did_not_make_is_left_as_it_is(make: Make, tmp_path: Path) -> None:
    """A project's own folder, with data in it, as the run's folder: it used to lose all of data/."""
    home = tmp_path / "project"
    (home / "data" / "other").mkdir(parents=True)
    file = tiny.write_rows(home / "data" / "train.jsonl", tiny.pairs(26))
    for name in ("recipe.yaml", "quarantine.jsonl", "data/other/notes.txt"):
        (home / name).write_text("mine")
    made = make("sft", "project", {"data.train": str(file)})
    for resume in (False, True):
        said = refusal(made, resume=resume)
        assert (
            "holds no run to resume" if resume else "holds other files (data, quarantine.jsonl, recipe.yaml)"
        ) in said
    assert sorted(path.name for path in home.iterdir()) == ["data", "quarantine.jsonl", "recipe.yaml"]
