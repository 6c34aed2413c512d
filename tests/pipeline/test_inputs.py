"""Which inputs of a stage differ is said in words."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

from prefine.errors import RecipeError
from prefine.pipeline import inputs
from prefine.pipeline.digests import KnownDigests
from prefine.pipeline.inputs import changes, key_of, path_fields
from prefine.recipe.pipeline_stage import METHODS


def test_a_field_of_a_new_release_is_said_to_be_new() -> None:
    before = {"method": "sft", "recipe lora.r": 4, "code": "a", "prefine": "0.1.0"}
    now = {"method": "sft", "recipe lora.r": 8, "recipe lora.dora": False, "code": "b", "prefine": "0.2.0"}
    assert changes(before, now) == [
        "lora.r was 4 and is 8",
        "lora.dora is false, and was not a field before",
        "prefine's code of this stage has changed (0.1.0 → 0.2.0)",
    ]
    assert changes(now, before)[1] == "prefine's code of this stage has changed (0.2.0 → 0.1.0)"
    assert changes(now, before)[2] == "lora.dora was false, and is not a field any more"


def test_a_release_with_the_same_code_has_the_same_key() -> None:
    assert key_of({"code": "a", "prefine": "1"}) == key_of({"code": "a", "prefine": "2"})
    assert key_of({"code": "a"}) != key_of({"code": "b"})
    assert key_of({"recipe x": "1"}) != key_of({"recipe x": 1})


def test_fields_that_hold_paths() -> None:
    ppo = path_fields(METHODS["ppo"])
    assert {"model.name", "model.chat_template", "reward.name", "reward.more.name", "reward.judge"} <= ppo
    assert {"candidate", "gate", "chat_template"} <= path_fields(METHODS["evaluate"])
    assert "runs" in path_fields(METHODS["report"])
    assert "device" not in path_fields(METHODS["evaluate"])


def contents(name: str, value: object, model: type[BaseModel], tmp_path: Path) -> dict[str, object]:
    return inputs._contents(name, value, path_fields(model), KnownDigests(tmp_path / "digests.json"))


def test_a_path_without_a_slash_counts_where_a_path_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("gate", "auto", "template"):
        (tmp_path / name).write_text(name)
    evaluate = METHODS["evaluate"]
    assert list(contents("gate", "gate", evaluate, tmp_path)) == ["content gate"]
    assert list(contents("chat_template", "template", evaluate, tmp_path)) == ["content template"]
    assert contents("dtype", "auto", evaluate, tmp_path) == {}
    more = [{"name": "template", "scale": "auto"}]
    assert list(contents("reward.more", more, METHODS["ppo"], tmp_path)) == ["content template"]


def test_a_reward_function_in_a_package_is_found_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "src/mypackage/deep").mkdir(parents=True)
    (tmp_path / "src/mypackage/__init__.py").write_text("raise RuntimeError('imported')\n")
    module = tmp_path / "src/mypackage/deep/scores.py"
    module.write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path / "src"))
    monkeypatch.chdir(tmp_path)
    ppo = METHODS["ppo"]
    before = contents("reward.name", "mypackage.deep.scores:f", ppo, tmp_path)
    assert list(before) == ["content mypackage.deep.scores:f"]
    module.write_text("# another\n")
    assert contents("reward.name", "mypackage.deep.scores:f", ppo, tmp_path) != before
    assert contents("reward.name", "mypackage:f", ppo, tmp_path) != {}
    with pytest.raises(RecipeError, match=r"reward\.name is mypackage\.nix:f, and there is no module mypackage\.nix"):
        contents("reward.name", "mypackage.nix:f", ppo, tmp_path)
    assert "mypackage" not in sys.modules


def test_of_a_task_of_lm_eval_the_code_and_settings_beside_it_count(tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    task, code = folder / "own.yaml", folder / "own.py"
    task.write_text("task: own")
    code.write_text("# one")

    def found() -> dict[str, object]:
        return contents("lm_eval", [str(task), "arc_easy"], METHODS["evaluate"], tmp_path)

    (folder / "data.jsonl").write_text("{}")
    before = found()
    assert list(before) == [f"content {task}"]
    (folder / "data.jsonl").write_text("{} {}")
    assert found() == before
    code.write_text("# two")
    changed = found()
    assert changed != before
    (folder / "_default.yml").write_text("metric: acc")
    assert found() not in (before, changed)
