"""OpenAI Evals: registries that the package itself loads and runs, and its logs.

logs/match.jsonl and logs/battle.jsonl were written by evals 3.0.1 on the suites of suites.py.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from prefine.errors import DataError
from prefine.exchange.cases import Suite
from prefine.exchange.openai_evals import read_log, write_registry
from tests.exchange.suites import battles, cases

LOGS = Path(__file__).with_name("logs")


def written(folder: Path) -> Path:
    write_registry(cases(), folder, "shop")
    write_registry(battles(), folder, "duel")
    return folder


def test_a_registry_keeps_the_packages_rules(tmp_path: Path) -> None:
    registry = written(tmp_path / "new" / "reg")
    for name in ("shop", "duel"):
        entries = yaml.safe_load((registry / "evals" / f"{name}.yaml").read_text())
        assert [*entries] == [name, f"{name}.dev.v0"] and entries[name]["id"] == f"{name}.dev.v0"
        assert not {"key", "group", "cls"} & {key for entry in entries.values() for key in entry}
        path = registry / "data" / entries[f"{name}.dev.v0"]["args"]["samples_jsonl"]
        text = path.read_text(encoding="utf-8")
        assert text.endswith("\n") and "" not in text.splitlines() and len(text.splitlines()) >= 2
    rows = [json.loads(line) for line in (registry / "data/shop/samples.jsonl").read_text("utf-8").splitlines()]
    assert rows[6]["ideal"] == ["no", "yes"]
    assert [turn["role"] for turn in rows[0]["input"]] == ["system", "user"]
    rows = [json.loads(line) for line in (registry / "data/duel/samples.jsonl").read_text("utf-8").splitlines()]
    assert all(row[f"completion{1 if row['choice'] == 'Yes' else 2}"].startswith("good") for row in rows)


def test_cases_and_battles_of_one_source_are_two_evals(tmp_path: Path) -> None:
    suite = Suite(cases().cases, battles().battles)
    assert write_registry(suite, tmp_path, "both", "contains") == ["both", "both-battle"]
    entries = yaml.safe_load((tmp_path / "evals" / "both.yaml").read_text())
    assert entries["both.dev.v0"]["class"].endswith("includes:Includes")
    with pytest.raises(DataError, match=r"both\.yaml exists already"):
        write_registry(suite, tmp_path, "both")


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_eval_of_the_same_name_is_kept_whichever_file_lists_it(tmp_path: Path) -> None:
    both = Suite(cases().cases, battles().battles)
    write_registry(battles(), tmp_path, "shop-battle")
    before = files_of(tmp_path)
    with pytest.raises(DataError, match="shop-battle exists already"):
        write_registry(both, tmp_path, "shop")
    assert files_of(tmp_path) == before
    (tmp_path / "evals" / "shop-battle.yaml").rename(tmp_path / "evals" / "mine.yaml")
    (tmp_path / "data" / "shop-battle").rename(tmp_path / "data" / "mine")
    with pytest.raises(DataError, match=r"mine\.yaml has an eval shop-battle already"):
        write_registry(both, tmp_path, "shop")
    assert write_registry(both, tmp_path, "sho") == ["sho", "sho-battle"]


def test_samples_that_are_not_the_logs_are_refused(tmp_path: Path) -> None:
    other = Suite(list(reversed(cases().cases)))
    write_registry(other, tmp_path, "shop")
    write_registry(Suite(battles=list(reversed(battles().battles))[:5]), tmp_path, "duel")
    for log in ("match", "battle"):
        with pytest.raises(DataError, match=r"--registry: its sample for .* is not the one that the log is about"):
            read_log(LOGS / f"{log}.jsonl", tmp_path)


def test_a_choice_that_is_no_text_is_none(tmp_path: Path) -> None:
    event = {"sample_id": "duel.dev.0", "type": "metrics", "data": {"choice": ["Yes"], "score": 1.0}}
    path = tmp_path / "log.jsonl"
    path.write_text(f'{{"spec": {{"base_eval": "duel"}}}}\n{json.dumps(event)}\n')
    (row,) = read_log(path, written(tmp_path)).rows
    assert (row.choice, row.winner) == (None, None)
    with pytest.raises(DataError, match="cannot be read"):
        read_log(tmp_path / "no\0ne.jsonl")


@pytest.mark.parametrize("name", ["group", "a.b", "", "a b", "../x", "-a"])
def test_names_that_the_package_refuses_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--name: .* cannot be the name of an eval\. Use letters"):
        write_registry(cases(), tmp_path, name)
    assert not [*tmp_path.iterdir()]


def expect_matches(rows: list[Any]) -> None:
    """The answers were the questions."""
    assert [row.id for row in rows] == [f"c{n}" for n in range(8)]
    assert [row.passed for row in rows] == [True] * 7 + [False]
    assert [row.answer for row in rows] == [case.prompt[-1]["content"] for case in cases().cases]
    assert [row.expected for row in rows] == [case.expected for case in cases().cases]


def test_a_log_of_matches_is_read_with_events_after_the_report(tmp_path: Path) -> None:
    log = read_log(LOGS / "match.jsonl", written(tmp_path))
    expect_matches(log.rows)
    assert (log.name, log.report["accuracy"], log.remarks) == ("shop.dev.v0", pytest.approx(7 / 8), [])
    assert (log.passed, log.checked) == (7, 8)
    lines = (LOGS / "match.jsonl").read_text("utf-8").splitlines()
    assert "final_report" in lines[1], "events follow it"
    without = read_log(LOGS / "match.jsonl")
    assert [row.id for row in without.rows] == [f"shop.dev.{n}" for n in range(8)]
    assert [row.passed for row in without.rows] == [row.passed for row in log.rows]


def test_a_log_of_battles_says_who_won(tmp_path: Path) -> None:
    log = read_log(LOGS / "battle.jsonl", written(tmp_path))
    assert [(row.id, row.winner, row.passed) for row in log.rows] == [
        (f"b{n}", "chosen" if n else None, n > 0) for n in range(6)
    ]
    assert log.rows[0].choice == "__invalid__"
    assert log.report["metascore"] == pytest.approx(5 / 6)
    assert {row.winner for row in read_log(LOGS / "battle.jsonl").rows} == {None}


def test_a_log_of_a_run_that_was_killed_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    lines = (LOGS / "match.jsonl").read_text("utf-8").splitlines(keepends=True)
    path.write_text(lines[0] + lines[2] + lines[3][:20], "utf-8")  # without the report
    log = read_log(path)
    assert log.remarks == ["the log has no final report: the evaluation was stopped, or is going on"]
    assert log.rows and log.report == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ('{"a": 1}\n', "line 1 has no field spec"),
        ('{"spec": {}}\nx\n{}\n', "line 2 is not a JSON object"),
        ('{"spec": {"base_eval": "../x"}}\n', r"the log's eval '../x' is not one that prefine wrote"),
    ],
)
def test_what_is_not_a_log_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_log(path, tmp_path)


# --- The package itself ----------------------------------------------------------------------------------------------


class Answers:
    """A model whose answer is computed from the prompt."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def __call__(self, prompt: Any, **settings: Any) -> Any:
        text = self._answer(prompt)

        class Result:
            def get_completions(self) -> list[str]:
                return [text]

        return Result()


def judged(prompt: Any) -> str:
    """Prefers the answer that says that it is good; to the first question it says neither."""
    text = prompt[0]["content"]
    if "Q0" in text:
        return "Perhaps."
    first = re.search(r"\[Response 1\]\n(\w+)", text)
    assert first is not None
    return "Because.\n" + ("Yes" if first[1] == "good" else "No")


def run_package(registry: Path, name: str, answer: Any, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run an eval as oaieval does."""
    for variable, value in {"OPENAI_API_KEY": "x", "EVALS_SEQUENTIAL": "1", "EVALS_SHOW_EVAL_PROGRESS": ""}.items():
        monkeypatch.setenv(variable, value)
    try:
        from evals.base import RunSpec
        from evals.record import LocalRecorder
        from evals.registry import Registry
    except ImportError as error:
        pytest.skip(f"OpenAI's package evals, with over 40 dependencies, is not installed: {error}")
    spec = Registry([registry]).get_eval(name)
    assert spec is not None and spec.key == f"{name}.dev.v0"
    split = {"base_eval": name, "split": "dev", "created_by": ""}
    recorder = LocalRecorder(
        str(log),
        RunSpec(completion_fns=["me"], eval_name=spec.key, run_config={"eval_spec": spec, "seed": 1}, **split),
    )
    made = Registry().get_class(spec)(
        completion_fns=[Answers(answer)],
        seed=1,
        name=spec.key,
        eval_registry_path=spec.registry_path,
        registry=Registry(),
    )
    result = made.run(recorder)
    recorder.record_final_report(result)
    recorder.flush_events()
    sys.stdout.write(f"{result}\n")


def test_the_package_runs_what_was_written_and_its_log_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = written(tmp_path / "reg")
    logs = {name: tmp_path / f"{name}.jsonl" for name in ("shop", "duel")}
    run_package(registry, "shop", lambda prompt: prompt[-1]["content"], logs["shop"], monkeypatch)
    run_package(registry, "duel", judged, logs["duel"], monkeypatch)
    expect_matches(read_log(logs["shop"], registry).rows)
    assert [row.winner for row in read_log(logs["duel"], registry).rows] == [None] + ["chosen"] * 5
    assert read_log(logs["duel"]).report["metascore"] == pytest.approx(5 / 6)
