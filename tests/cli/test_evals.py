"""prefine evals write and prefine evals read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefine.cli.app import main
from prefine.comparisons.result import AnswerOf, AnswerRow

LOGS = Path(__file__).parents[1] / "exchange" / "logs"


def run(*words: str) -> object:
    with pytest.raises(SystemExit) as leaving:
        main(words)
    return leaving.value.code


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def source(folder: Path, *rows: dict[str, object]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_prompts_with_references_become_a_registry(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": f"{n} + 1?", "reference": str(n + 1)} for n in range(3)]
    out = tmp_path / "reg"
    words = ("evals", "write", source(tmp_path, *rows, {"prompt": "why?"}), "--to", "openai-evals", "--out", str(out))
    assert run(*words, "--name", "sums") == 0
    assert [row["ideal"] for row in lines(out / "data/sums/samples.jsonl")] == [["1"], ["2"], ["3"]]
    shown = capsys.readouterr()
    assert f"3 cases and 0 battles in {out}; run:\n  oaieval MODEL sums --registry_path {out}" in shown.out
    assert "1 row left out: has no expected answer" in shown.err
    assert run(*words, "--name", "sums") == 2
    assert "exists already" in capsys.readouterr().err


def test_demonstrations_and_preferences_become_promptfoo_tests(tmp_path: Path) -> None:
    for name, row, words in (
        ("demonstrations", {"completion": "A"}, {"starts-with"}),
        ("preferences", {"chosen": "A", "rejected": "B"}, {"regex"}),
    ):
        out = tmp_path / name
        rows = [{"prompt": f"Q{n}", **row} for n in range(2)]
        assert run("evals", "write", source(tmp_path, *rows), "--to", "promptfoo", "--out", str(out)) == 0
        tests = lines(out / "tests.jsonl")
        assert len(tests) == 2
        assert {check["type"] for test in tests for check in test["assert"]} == words  # type: ignore[attr-defined]


def test_an_evaluations_folder_is_a_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "dpo-against-sft"
    folder.mkdir()
    given = [
        AnswerRow(
            id=f"r{n}",
            prompt=[{"role": "user", "content": f"Q{n}"}],
            reference="A",
            candidate=AnswerOf(text=f"A{n}", tokens=1, ended=True),
            baseline=AnswerOf(text="B", tokens=1, ended=True),
        )
        for n in range(2)
    ]
    (folder / "answers.jsonl").write_text("".join(row.model_dump_json() + "\n" for row in given))
    out = tmp_path / "out"
    assert run("evals", "write", str(folder), "--to", "openai-evals", "--out", str(out), "--name", "duel") == 0
    assert {tuple(sorted(row["sides"])) for row in lines(out / "data/duel-battle/samples.jsonl")} == {  # type: ignore[call-overload]
        ("baseline", "candidate")
    }
    assert "2 cases and 2 battles" in capsys.readouterr().out


def test_logs_of_both_programs_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.jsonl"
    assert run("evals", "read", str(LOGS / "match.jsonl"), "--out", str(out)) == 0
    assert [row["passed"] for row in lines(out)] == [True] * 7 + [False]
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "shop.dev.v0: 8 rows, 7 of 8 passed" and said[1].startswith("accuracy 0.875, boostrap_std")
    assert run("evals", "read", str(LOGS / "promptfoo-battle.json")) == 0
    shown = capsys.readouterr()
    assert [json.loads(line)["winner"] for line in shown.out.splitlines()] == [None] + ["chosen"] * 5
    assert shown.err.splitlines() == [
        "shop: 6 rows, 5 of 5 passed",
        "preferred: chosen 5",
        "1 without a result",
        "successes 5, failures 0, errors 1",
    ]


@pytest.mark.parametrize(
    ("rows", "words", "message"),
    [
        ([{"prompt": "Q", "completion": "A", "label": True}], (), "these rows are votes"),
        ([{"prompt": "Q"}], (), "no row can be written: has no expected answer (1)"),
        ([{"prompt": "Q", "completion": "A"}], ("--url", "http://x"), "--model and --url: a registry"),
        ([{"prompt": "Q", "completion": "A"}], ("--name", "key"), "--name: 'key' cannot be the name of an eval"),
    ],
)
def test_what_cannot_be_written_is_refused(
    rows: list[dict[str, object]],
    words: tuple[str, ...],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    assert run("evals", "write", source(tmp_path, *rows), "--to", "openai-evals", "--out", str(out), *words) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()
