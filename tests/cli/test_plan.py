"""prefine plan: for people, as JSON, with the change that fits, and refusals."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import yaml

import prefine
from prefine.cli.app import main
from prefine.planning import plan as plan_module
from prefine.planning.machine import Machine
from tests.training import tiny

HERE = Machine("cpu", "float32", 8 * 10**9, {"float32": 50.0}, 5e9)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(plan_module, "machine_for", lambda asked: HERE)
    monkeypatch.setattr("prefine.planning.fit.machine_for", lambda asked: HERE)
    model = tiny.save_model(tmp_path / "model")
    data = tiny.write_rows(tmp_path / "pairs.jsonl", tiny.pairs(20))
    return Path(tiny.written(tiny.recipe("dpo", tmp_path / "run", model, data), tmp_path / "dpo.yaml"))


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as leaving:
        main(["plan", *words])
    said = capsys.readouterr()
    return int(str(leaving.value.code or 0)), said.out, said.err


def test_it_says_whether_the_recipe_fits(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = shown(capsys, str(recipe))
    assert code == 0
    assert out.startswith("dpo on cpu in float32: 0.")
    assert "fits the 8.00 GB of this machine's cpu" in out
    assert "rows: counted:" in out and "time: about" in out and "disk:" in out


def test_json_has_every_term(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = shown(capsys, str(recipe), "--json")
    found = json.loads(out)
    peak = next(moment for moment in found["moments"] if moment["name"] == found["peak_moment"])
    assert found["peak_bytes"] == sum(term["bytes"] for term in peak["terms"])
    assert found["fits"] is True and found["steps"] > 0


def test_a_change_that_fits_is_a_line_to_paste(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = prefine.plan("dpo", recipe).peak_bytes
    code, out, _ = shown(capsys, str(recipe), "--fit", f"{(whole - 100_000) / 1e6}MB")
    assert code == 0
    line = next(line.strip() for line in out.splitlines() if line.strip().startswith("--set "))
    setting = line.removeprefix("--set ").strip("'")
    changed = prefine.plan("dpo", recipe, **{setting.partition("=")[0]: json.loads(setting.partition("=")[2])})
    assert changed.peak_bytes < whole
    _, out, _ = shown(capsys, str(recipe), "--fit", "8GB")
    assert "it fits 8.00 GB as it is" in out
    assert prefine.plan("dpo", recipe, fit="8GB").changes == ()


def test_a_pipeline_gets_settings_of_its_stages(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("prefine.pipeline.planned.machine_for", lambda asked: HERE)
    dpo = {key: value for key, value in yaml.safe_load(recipe.read_text()).items() if key != "run"}
    file = tmp_path / "pipeline.yaml"
    file.write_text(yaml.safe_dump({"folder": str(tmp_path / "all"), "stages": {"dpo": {"method": "dpo", **dpo}}}))
    whole = prefine.plan("dpo", recipe).peak_bytes
    budget = f"{(whole - 100_000) / 1e6}MB"
    code, out, _ = shown(capsys, str(file), "--fit", budget)
    assert code == 0
    _, _, pasted = out.partition("to fit:\n")
    words = shlex.split(pasted.splitlines()[0])
    assert words[0] == "--set" and words[1].startswith("stages.dpo.")
    _, out, _ = shown(capsys, str(file), *words, "--json")
    assert json.loads(out)[0]["plan"]["peak_bytes"] < whole
    _, out, _ = shown(capsys, str(file), "--fit", "8GB")
    assert "each planned stage fits 8.00 GB as it is" in out
    code, _, err = shown(capsys, str(file), "--method", "dpo")
    assert code == 2 and "--method" in err


def test_refusals_name_what_was_written(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = shown(capsys, str(recipe), "--fit", "24")
    assert code == 2 and "--fit: '24' has no unit" in err
    code, _, err = shown(capsys, str(recipe), "--method", "dop")
    assert code == 2 and "--method" in err
    other = recipe.rename(tmp_path / "mine.yaml")
    code, _, err = shown(capsys, str(other), "--method", "dpo", "--set", "model.name=stage:sft")
    assert code == 2 and "is a stage of a pipeline" in err
