"""prefine evaluate as a command: exit codes and what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefine.cli.app import main
from tests.training import tiny


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", *arguments])
    code = ended.value.code
    assert isinstance(code, int)
    return code


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments that compare T with another random model."""
    folder = tmp_path_factory.mktemp("cli")
    new, old = tiny.save_model(folder / "new", seed=7), tiny.save_model(folder / "old", seed=8)
    prompts = tiny.write_rows(folder / "prompts.jsonl", [{"prompt": f"question {i}"} for i in range(4)])
    out = folder / "out"
    settings = ["--max-new-tokens", "4", "--no-regression", "--device", "cpu", "--out", str(out)]
    return [str(new), "--against", str(old), "--prompts", str(prompts), *settings]


def test_exit_codes(told: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*told) == 0
    said = capsys.readouterr().out
    assert said.startswith("no difference shown: Nothing that was computed says which model is better")
    assert "not computed: reward: no reward model was named (--reward)\n" in said
    assert said.rstrip().endswith("report.html")
    gate = tmp_path / "gate.yaml"
    gate.write_text("verdict: better\n")
    assert run(*told, "--gate", str(gate)) == 3
    assert "gate: don't ship\n" in capsys.readouterr().out
    gate.write_text("verdict: any\nregressions_allowed: 20\nregression_set: optional\n")
    assert run(*told, "--gate", str(gate)) == 0
    assert "gate: ship\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (["--judge", "http://127.0.0.1:9/v1"], "--judge-model: a judge's endpoint is named without its model"),
        (["--judge-model", "m"], "--judge: a judge's model is named without its endpoint"),
        (["--judge", "nothing", "--judge-model", "m"], "nothing"),
        (["--price-in", "1", "--price-out", "2"], "--price-in: has no effect without a judge"),
        (["--judge", "http://127.0.0.1:9/v1", "--judge-model", "m", "--price-in", "1"], "--price-in: one price"),
        (["--judge", "http://127.0.0.1:9/v1", "--judge-model", " "], "--judge-model: is blank"),
        (["--timeout", "5"], "have no effect, as no model is behind an endpoint"),
        (["--gate", "/nowhere/gate.yaml"], "gate.yaml"),
        (["--reward", "/nowhere/reward"], "--reward: there is no folder '/nowhere/reward'"),
        (["--lm-eval", "nowhere.yaml"], "there is no file 'nowhere.yaml'"),
        (["--pairs", "/nowhere.jsonl"], "/nowhere.jsonl"),
        (["--temperature", "-1"], "--temperature is -1.0"),
    ],
)
def test_mistakes_are_said_in_one_line(
    told: list[str], more: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*told, *more) == 2
    said = capsys.readouterr().err
    assert problem in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1
