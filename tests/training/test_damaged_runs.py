"""Whatever is lost, cut, changed or put in another's place in a run: it goes on as it was, or says what is wrong.

Never a traceback, and never another result without a word.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefine.errors import CheckpointError, DataError, PrefineError, Stopped
from prefine.models.loading.load import load_model
from prefine.recipe.sections import ModelSection
from prefine.recipe.stage import StageRecipe
from prefine.report.page import write_report
from prefine.training.loop.loop import Loop
from tests.training import tiny

Make = Callable[..., StageRecipe]
STEPS = 5
CHANGES: dict[str, Any] = {"training.max_steps": STEPS, "training.keep_best": True}


def stopped(made: StageRecipe, step: int = 3) -> None:
    """Train as by Ctrl-C after a step."""
    real = Loop.__post_init__

    def asked(loop: Loop) -> None:
        real(loop)
        loop.stop_requested = lambda: loop.position.step == step

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Loop, "__post_init__", asked)
        with pytest.raises(Stopped):
            tiny.train(made)


@pytest.fixture(scope="module")
def runs(model: Path, data: Path, no_cache_outside: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished and a stopped DPO run of one recipe."""
    folder = tmp_path_factory.mktemp("damaged")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("prefine.training.run.run_stage.write_report", lambda run: run / "report.html")
        tiny.train(tiny.recipe("dpo", folder / "finished", model, data, CHANGES))
        stopped(tiny.recipe("dpo", folder / "stopped", model, data, CHANGES))
    return {name: folder / name for name in ("finished", "stopped")}


@pytest.fixture
def copy(runs: dict[str, Path], make: Make, tmp_path: Path) -> Callable[..., StageRecipe]:
    """copy("stopped", {...}): the recipe of a copy of that run, with these changes."""

    def made(state: str, changes: dict[str, Any] | None = None, stage: str = "dpo") -> StageRecipe:
        name = f"copy-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(runs[state], tmp_path / name)
        fitting = CHANGES if changes is None else {**CHANGES, **changes}
        return make(stage, name, fitting)

    return made


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def empty(file: Path) -> None:
    os.truncate(file, 0)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    for place in range(len(content) // 3, len(content), max(1, len(content) // 3)):
        content[place] ^= 0x15
    file.write_bytes(content)


def replace(file: Path) -> None:
    file.unlink()
    file.mkdir()


def lose(file: Path) -> None:
    file.unlink()


def add_strange_rows(file: Path) -> None:
    """Objects in JSON, but no metrics."""
    file.write_text('{"mine": 1}\n{"kind": "heldout"}\n{"kind": "guard", "step": "x"}\n' + file.read_text())


DAMAGES = [truncate, empty, flip, replace, lose]


def outcome(work: Callable[[], object]) -> str:
    """What a user sees; anything but a PrefineError is a traceback and fails the test."""
    try:
        work()
    except PrefineError as error:
        assert "\n" not in str(error)
        return str(error)
    return ""


def files_of(run: Path) -> list[Path]:
    return sorted(file.relative_to(run) for file in run.rglob("*") if file.is_file())


def survives_damage(
    damage: Callable[[Path], None], file: Path, state: str, copy: Callable[..., StageRecipe], runs: dict[str, Path]
) -> None:
    """A copy of a run, with this file damaged, ends as the sound one did, or says what is wrong."""
    made, sound = copy(state), runs["finished"]
    run = Path(made.run)
    damage(run / file)
    outcome(lambda: write_report(run))
    outcome(lambda: load_model(ModelSection(name=str(run), device="cpu", dtype="float32"), None, trainable=False))
    if not outcome(lambda: tiny.train(made, resume=True)):
        ended, whole, name = tiny.weights(run), tiny.weights(sound), f"{damage.__name__} {file}"
        assert all(ended[key].equal(whole[key]) for key in whole), name
        assert (run / "evaluation.json").read_bytes() == (sound / "evaluation.json").read_bytes(), name
    shutil.rmtree(run)


@pytest.mark.parametrize("state", ["finished", "stopped"])
def test_each_file_damaged_in_one_way(state: str, copy: Callable[..., StageRecipe], runs: dict[str, Path]) -> None:
    for number, file in enumerate(files_of(runs[state])):
        survives_damage(DAMAGES[number % len(DAMAGES)], file, state, copy, runs)


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("state", ["finished", "stopped"])
def test_each_file_damaged_in_every_other_way(
    state: str, damage: Callable[[Path], None], copy: Callable[..., StageRecipe], runs: dict[str, Path]
) -> None:
    for number, file in enumerate(files_of(runs[state])):
        if damage is not DAMAGES[number % len(DAMAGES)]:  # as above
            survives_damage(damage, file, state, copy, runs)


# --- Results that would change silently -------------------------------------------------------------------------------


def test_a_changed_token_is_prepared_again_from_the_source(copy: Callable[..., StageRecipe], runs: Any) -> None:
    made = copy("stopped")
    store = Path(made.run) / "data" / "train.arrow"
    before = store.read_bytes()
    place = len(before) // 2
    store.write_bytes(before[:place] + bytes([before[place] ^ 1]) + before[place + 1 :])
    said = tiny.train(made, resume=True)
    assert "train.arrow was changed or damaged; its rows were prepared again from their sources" in said
    assert store.read_bytes() == before
    assert not tiny.differences(runs["finished"], Path(made.run))


def test_lost_metrics_do_not_change_what_before_means(copy: Callable[..., StageRecipe], runs: Any) -> None:
    whole = json.loads((runs["finished"] / "evaluation.json").read_text())
    for damage in (lose, empty, truncate, add_strange_rows):
        made = copy("stopped")
        damage(Path(made.run) / "metrics.jsonl")
        assert "metrics.jsonl lost lines or was changed" in tiny.train(made, resume=True)
        assert json.loads((Path(made.run) / "evaluation.json").read_text()) == whole


@pytest.mark.parametrize("damage", [lose, truncate, flip])
@pytest.mark.parametrize("name", ["heldout-before.json", "samples.jsonl"])
def test_what_was_before_is_made_again(
    name: str, damage: Callable[[Path], None], copy: Callable[..., StageRecipe], runs: Any
) -> None:
    made = copy("stopped")
    damage(Path(made.run) / name)
    said = tiny.train(made, resume=True)
    assert f"{name} was lost or" in said
    assert (Path(made.run) / name).read_bytes() == (runs["finished"] / name).read_bytes()
    assert not tiny.differences(runs["finished"], Path(made.run))


def test_a_checkpoint_of_another_run_is_passed_over(
    copy: Callable[..., StageRecipe], make: Make, runs: dict[str, Path]
) -> None:
    other = make("dpo", "other", {**CHANGES, "training.learning_rate": 0.5})
    tiny.train(other)
    made = copy("stopped")
    foreign = Path(made.run) / "checkpoints" / f"step-{STEPS - 1:08d}"
    shutil.copytree(Path(other.run) / "checkpoints" / foreign.name, foreign)
    with pytest.raises(CheckpointError, match=rf"{foreign} is a checkpoint of another run\. Move it away"):
        tiny.train(made, resume=True)  # passed over on resuming, and in the way when that step is saved
    shutil.rmtree(foreign)
    shutil.copytree(Path(other.run) / "checkpoints" / foreign.name, foreign.with_name("step-00000099"))
    shutil.copytree(Path(other.run) / "checkpoints" / foreign.name, foreign.with_name("step-00000003.replaced"))
    assert "step-00000099 is skipped: it belongs to another run" in tiny.train(made, resume=True)
    assert not tiny.differences(runs["finished"], Path(made.run))
    assert foreign.with_name("step-00000099").is_dir()


def test_a_lost_manifest_is_not_guessed(copy: Callable[..., StageRecipe]) -> None:
    made = copy("stopped")
    (Path(made.run) / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"holds no manifest\.json, and checkpoints, .*restore manifest\.json"):
        tiny.train(made, resume=True)


# --- A finished run --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"training.learning_rate": 0.5}, "training.learning_rate was 0.01 and is 0.5"),
        ({"training.max_steps": 9}, "training.max_steps was 5 and is 9"),
        ({"data.heldout_fraction": 0.3}, "data.heldout_fraction was 0.2 and is 0.3"),
    ],
)
def test_a_finished_run_is_compared_before_it_is_called_finished(
    changes: dict[str, Any], told: str, copy: Callable[..., StageRecipe]
) -> None:
    made = copy("finished", changes)
    with pytest.raises(CheckpointError) as raised:
        tiny.train(made, resume=True)
    assert f"{made.run} is finished, and was trained with another recipe ({told})" in str(raised.value)
    assert f"--set run=NEW); to train this run's result further, also add --set model.name={made.run}" in str(
        raised.value
    )


def test_a_finished_run_of_another_stage_or_data_is_refused(
    copy: Callable[..., StageRecipe], data: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="is a run of dpo, not of sft"):
        tiny.train(copy("finished", stage="sft"), resume=True)
    other = tiny.write_rows(tmp_path / "other.jsonl", tiny.pairs(25))
    made = copy("finished", {"data.train": str(other)})
    with pytest.raises(CheckpointError, match=r"data\.train was"):
        tiny.train(made, resume=True)
    kept = data.read_bytes()
    try:
        data.write_bytes(kept.replace(b"good", b"fine", 1))
        with pytest.raises(CheckpointError, match="the data, the tokenizer or the data settings differ from those"):
            tiny.train(copy("finished"), resume=True)
        data.unlink()
        with pytest.raises(DataError, match="no such file"):
            tiny.train(copy("finished"), resume=True)
    finally:
        data.write_bytes(kept)


def test_a_finished_run_without_its_model_makes_it_again(copy: Callable[..., StageRecipe], runs: Any) -> None:
    made = copy("finished")
    shutil.rmtree(Path(made.run) / "model")
    assert "parts of its result are missing: they are made again" in tiny.train(made, resume=True)
    assert not tiny.differences(runs["finished"], Path(made.run))
    assert tiny.manifest(Path(made.run))["status"] == "finished"
    assert "is finished already" in tiny.train(made, resume=True)
    shutil.rmtree(Path(made.run) / "model")
    shutil.rmtree(Path(made.run) / "checkpoints")
    with pytest.raises(CheckpointError, match="its model is missing or damaged, and it holds no valid checkpoint"):
        tiny.train(made, resume=True)


@pytest.mark.parametrize(
    ("damage", "name", "how"),
    [
        (flip, "adapter_model.safetensors", "has changed"),
        (lose, "adapter_model.safetensors", "is missing"),
        (lose, "adapter_config.json", "is missing"),
        (lose, "tokenizer.json", "is missing"),
        (empty, "generation_config.json", "has changed"),
    ],
)
def test_a_finished_run_with_other_files_says_so(
    damage: Callable[[Path], None], name: str, how: str, copy: Callable[..., StageRecipe]
) -> None:
    made = copy("finished")
    (Path(made.run) / "model" / "README.md").write_text("edited")
    (Path(made.run) / "model" / "notes.txt").write_text("added")
    assert "is finished already" in tiny.train(made, resume=True)
    damage(Path(made.run) / "model" / name)
    with pytest.raises(CheckpointError, match=rf"model is not as this run saved it: {name} {how}\. Restore"):
        tiny.train(made, resume=True)


# --- While it trains ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["deleted", "renamed"])
def test_a_run_folder_that_goes_meanwhile_is_one_line_and_nothing_is_saved_elsewhere(
    how: str, make: Make, tmp_path: Path
) -> None:
    made = make("sft", "gone", {"training.max_steps": 6})
    run, kept = Path(made.run), tmp_path / "kept"
    real = Loop.__post_init__

    def removing(loop: Loop) -> None:
        real(loop)

        def asked() -> bool:
            if loop.position.step == 3 and run.exists():
                run.rename(kept)
                if how == "deleted":
                    shutil.rmtree(kept)
            return False

        loop.stop_requested = asked

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Loop, "__post_init__", removing)
        with pytest.raises(CheckpointError, match="was deleted or renamed while the run was going"):
            tiny.train(made)
    assert not run.exists()
    if how == "renamed":
        kept.rename(run)
        tiny.train(made, resume=True)
