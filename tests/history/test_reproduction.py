"""A run's recipe and command make it again; what has changed since is said."""

from __future__ import annotations

import json
import os
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from prefine.errors import CheckpointError
from prefine.history.reproduction import Reproduction, commented, reproduction_of
from prefine.recipe.loading import load_recipe
from prefine.recipe.sft import SftRecipe
from prefine.runs.directory import run_provenance
from tests.history.runs import a_run


def made(tmp_path: Path, data: Path, **changes: Any) -> Path:
    """A run on a file of data, made just now."""
    files = [{"path": str(data), "sha256": sha256(data.read_bytes()).hexdigest()}]
    whole: dict[str, Any] = {**run_provenance([]), "data": {"train": {"files": files}}, **changes}
    return a_run(tmp_path / "run", model="no-such-model", **whole)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "Q", "response": "A"}\n')
    return file


def test_the_recipe_is_whole_and_in_the_measured_number_type(tmp_path: Path, data: Path) -> None:
    run = made(tmp_path, data)
    found = reproduction_of(run, tmp_path / "again.yaml", tmp_path / "again")
    file = tmp_path / "again.yaml"
    file.write_text(commented(found, run))
    recipe = load_recipe(file, [], SftRecipe)
    assert (recipe.run, recipe.model.name, recipe.model.dtype) == (str(tmp_path / "again"), "no-such-model", "float32")
    assert found.command == f"prefine sft {file}"
    assert file.read_text().startswith(f"# prefine sft {file}\n")


def test_what_differs_is_said(tmp_path: Path, data: Path) -> None:
    libraries = {"torch": "1.0"}
    run = made(tmp_path, data, prefine="0.0.9", libraries=libraries)
    found = reproduction_of(run, Path("x.yaml"), Path("again")).differences
    assert "prefine was 0.0.9 and is 0.1.0" in found
    assert any(each.startswith("torch was 1.0 and is ") for each in found)
    assert "the model no-such-model is no longer there" in found
    assert not [each for each in found if str(data) in each]
    data.write_text("changed\n")
    assert f"the content of {data} has changed" in reproduction_of(run, Path("x.yaml"), Path("again")).differences
    data.unlink()
    assert f"{data} is no longer there" in reproduction_of(run, Path("x.yaml"), Path("again")).differences


def test_a_folder_without_a_recipe_is_refused(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", stage="merge")
    with pytest.raises(CheckpointError, match="has no recipe of a known stage"):
        reproduction_of(run, Path("x.yaml"), Path("again"))
    assert json.loads((run / "manifest.json").read_text())["stage"] == "merge"


def test_every_model_that_scores_is_compared_and_force_is_kept(tmp_path: Path, data: Path) -> None:
    reward = tmp_path / "reward"
    reward.mkdir()
    (reward / "config.json").write_text('{"model_type": "llama"}')
    weights = reward / "model.safetensors"
    weights.write_bytes(b"weights")
    run = made(tmp_path, data)
    manifest = json.loads((run / "manifest.json").read_text())
    recipe = manifest["recipe"] | {
        "reward": {"name": str(reward), "more": [{"name": "mine:points"}], "judge": str(tmp_path / "gone")}
    }
    manifest |= {"recipe": recipe, "stage": "ppo", "code": {"reward.more[0].name": {"name": "mine:points"}}}
    manifest |= {"overridden": ["reward: no-go. It was used because of --force."]}
    (run / "manifest.json").write_text(json.dumps(manifest))

    def found() -> Reproduction:
        return reproduction_of(run, Path("x.yaml"), Path("again"))

    os.utime(weights, (1, 1))
    assert found().command == "prefine ppo x.yaml --force"
    assert f"reward.judge {tmp_path / 'gone'} is no longer there" in found().differences
    said = [each for each in found().differences if each.startswith("reward.") and "judge" not in each]
    assert said == ["reward.more[0].name mine:points is a function of yours: it must be the same one"]
    os.utime(weights)
    assert f"reward.name {reward} may have changed: its files are newer than the run" in found().differences
