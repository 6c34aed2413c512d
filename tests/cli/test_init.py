"""prefine init: it looks at the data, says why, writes a pipeline that is valid, and keeps what is there."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from prefine.cli.app import main
from prefine.recipe.loading import load_recipe
from prefine.recipe.pipeline import load_pipeline
from prefine.recipe.registry import RECIPES
from tests.training import tiny


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("prefine.advice.machine.machine_sentences", lambda: ["cpu: a processor"])
    monkeypatch.setattr("prefine.advice.memory.context_of", lambda model: 8192)
    monkeypatch.setattr("prefine.advice.memory.fitted", lambda pipeline: ({}, ["sft needs little."]))
    tiny.write_rows(tmp_path / "pairs.jsonl", tiny.pairs(12))


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(["init", *words])
    return int(str(left.value.code or 0))


def test_a_pipeline_for_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--data", "pairs.jsonl", "--model", "org/m", "--name", "desk") == 0
    pipeline = load_pipeline(tmp_path / "pipeline.yaml")
    assert list(pipeline.stages) == ["sft", "dpo", "better", "served", "page"]
    assert pipeline.folder == Path("runs/desk")
    shown = capsys.readouterr().out
    assert "pairs.jsonl: 12 preferences" in shown
    assert "There are 12 preference pairs: DPO" in shown
    assert "warning: 12 preference pairs are few" in shown
    assert "prefine run pipeline.yaml" in shown
    assert "sft needs little." in shown
    assert "# - sft needs little." in (tmp_path / "pipeline.yaml").read_text()


def test_no_stage_has_rows_longer_than_the_models_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("prefine.advice.memory.context_of", lambda model: 24)
    tiny.write_rows(tmp_path / "long.jsonl", [{"prompt": "q " * 80, "chosen": "a", "rejected": "b"}])
    assert run("--data", "long.jsonl") == 0
    stages = load_pipeline(tmp_path / "pipeline.yaml").stages
    assert {stages[name].recipe.data.max_length_tokens for name in ("sft", "dpo")} == {24}  # type: ignore[attr-defined]
    assert "warning: sft and dpo: the longest record has about 50 tokens" in capsys.readouterr().out


def test_an_existing_file_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pipeline.yaml").write_text("mine\n")
    assert run("--data", "pairs.jsonl") == 2
    assert capsys.readouterr().err == "error: --out pipeline.yaml exists. Name another file, or remove this one.\n"
    assert (tmp_path / "pipeline.yaml").read_text() == "mine\n"


def test_a_method_overrides_the_choice(tmp_path: Path) -> None:
    assert run("--data", "pairs.jsonl", "--method", "sft", "--out", "a.yaml") == 0
    pipeline = load_pipeline(tmp_path / "a.yaml")
    assert "dpo" not in pipeline.stages
    assert (pipeline.name, pipeline.folder) == ("a", Path("runs/a"))  # not the folder of pipeline.yaml


def test_without_a_terminal_nothing_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 2
    assert capsys.readouterr().err.startswith("error: --data is missing. Name your data")


def test_on_a_terminal_it_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["pairs.jsonl", "imitate", "org/m"])
    monkeypatch.setattr("prefine.cli.init.is_terminal", lambda: True)
    monkeypatch.setattr("typer.prompt", lambda *given, **options: next(answers))
    assert run() == 0
    assert list(load_pipeline(tmp_path / "pipeline.yaml").stages) == ["sft", "better", "served", "page"]


def test_questions_are_asked_again_until_they_can_be_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Data that are not there, then a file; a goal that is none; a model that is not there, then Enter."""
    monkeypatch.setattr("prefine.cli.init.is_terminal", lambda: True)
    monkeypatch.setattr("prefine.models.loading.location.embedded_folder", lambda name: tmp_path)
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr("sys.stdin", io.StringIO("none.jsonl\n,\npairs.jsonl\nworld peace\nImitate\n./none\n\n"))
    assert run() == 0
    shown = capsys.readouterr().out
    assert "none.jsonl: no such file or folder" in shown and "No data are named" in shown
    assert "there is no folder './none'" in shown
    assert "There is no goal 'world peace'. The goals are auto, imitate, prefer, control." in shown
    assert "[embedded:smollm2-135m]" in shown and "[auto]" in shown
    assert list(load_pipeline(tmp_path / "pipeline.yaml").stages) == ["sft", "better", "served", "page"]


def test_the_end_of_the_input_or_an_interrupt_ends_the_questions_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("prefine.cli.init.is_terminal", lambda: True)
    monkeypatch.setattr("sys.stdin", io.StringIO("pairs.jsonl\n"))
    assert run() == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert not (tmp_path / "pipeline.yaml").exists()


def test_an_existing_file_is_named_before_anything_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("prefine.cli.init.is_terminal", lambda: True)
    (tmp_path / "pipeline.yaml").write_text("mine\n")
    assert run() == 2
    assert capsys.readouterr().out == ""


def test_columns_that_are_not_read_can_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": f"q{n}", "response": f"a{n}"} for n in range(12)]
    (tmp_path / "shown.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run("--data", "shown.jsonl") == 2
    assert "shown.jsonl: A column that looks like answers is not read: response (12 rows)." in capsys.readouterr().err
    assert run("--data", "shown.jsonl", "--data", "pairs.jsonl") == 0
    assert "warning: shown.jsonl: A column that looks like answers is not read" in capsys.readouterr().out
    assert run("--data", "shown.jsonl", "--column", "completion=response", "--out", "named.yaml") == 0
    stage = load_pipeline(tmp_path / "named.yaml").stages["sft"]
    assert stage.recipe.data.columns == {"completion": "response"}  # type: ignore[attr-defined]


def test_a_configuration_of_trl(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.py").write_text("DPOConfig(beta=0.2, mystery=1)\n")
    assert run("--from-trl", "train.py") == 0
    assert load_recipe(tmp_path / "dpo.yaml", [], RECIPES["dpo"])
    shown = capsys.readouterr().out
    assert "  mystery: 1: prefine does not know this setting." in shown
    assert "To do: Set data.train" in shown
    assert "Next: prefine dpo dpo.yaml" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--from-trl", "a.py", "--from-axolotl", "b.yaml"], "--from-trl and --from-axolotl are given"),
        (["--from-trl", "a.py", "--data", "b"], "--data has no effect with --from-trl, whose file says it"),
        (["--from-trl", "a.py", "--goal", "auto"], "--goal has no effect with --from-trl"),
        (["--from-axolotl", "a.py", "--name", "zzz", "--split", "x"], "--name, --split have no effect with --from-axo"),
        (["--from-llamafactory", "a.py", "--column", "a=b"], "--column has no effect with --from-llamafactory"),
        (["--data", "pairs.jsonl", "--column", "x"], "--column x is not of the form NAME=COLUMN"),
        (["--data", "pairs.jsonl", "--column", "prompt=x"], "pairs.jsonl: data.columns says prompt: x, and no row"),
        (["--from-axolotl", "none.yaml"], "There is no recipe none.yaml"),
        (["--data", "none.jsonl"], "none.jsonl: no such file or folder"),
        (["--data", "pairs.jsonl", "--method", "kio"], "--method 'kio' is not a method"),
    ],
)
def test_refusals(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")
