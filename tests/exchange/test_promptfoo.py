"""Promptfoo: folders that the program itself runs, and its results.

logs/promptfoo.json and logs/promptfoo-battle.json were written by promptfoo 0.121.20 on the suites of suites.py.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from prefine.errors import DataError
from prefine.exchange.cases import Suite
from prefine.exchange.promptfoo import escaped, read_results, write_config
from tests.exchange.suites import ASKED, battles, cases

LOGS = Path(__file__).with_name("logs")
# The model whose answer is the last turn, and the judge that prefers the answer that says that it is good.
MODEL = """
module.exports = class {
  id() { return "last" }
  async callApi(prompt) {
    const text = JSON.parse(prompt).at(-1).content;
    if (!text.startsWith("Compare two")) return { output: text };
    if (text.includes("Q0")) return { error: "overloaded" };
    return { output: / A\\]\\ngood/.test(text) ? "A" : " B." };
  }
};
"""


def written(suite: Suite, folder: Path, **settings: Any) -> dict[str, Any]:
    write_config(suite, folder, "shop", **({"model": "m", "url": None} | settings))
    loaded: dict[str, Any] = yaml.safe_load((folder / "promptfooconfig.yaml").read_text("utf-8"))
    return loaded


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "tests.jsonl").read_text("utf-8").splitlines()]


def test_a_configuration_has_prompts_an_endpoint_and_tests(tmp_path: Path) -> None:
    config = written(cases(), tmp_path / "new" / "pf", url="http://127.0.0.1:1/v1")
    assert config["providers"] == [
        {"id": "openai:chat:m", "config": {"temperature": 0, "apiBaseUrl": "http://127.0.0.1:1/v1"}}
    ]
    assert (config["prompts"], config["tests"]) == (["file://prompt.txt"], "file://tests.jsonl")
    tests = rows_of(tmp_path / "new" / "pf")
    assert json.loads(tests[5]["vars"]["messages"])[-1] == {"role": "user", "content": ASKED[5]}
    assert tests[5]["assert"] == [{"type": "starts-with", "value": ASKED[5]}]
    several = tests[6]["assert"][0]
    assert (several["type"], several["threshold"], len(several["assert"])) == ("assert-set", 0.5, 2)


def test_cases_and_battles_of_one_source_are_two_configurations(tmp_path: Path) -> None:
    suite = Suite(cases().cases, battles().battles)
    files = write_config(suite, tmp_path, "both", "contains", model="m", url=None)
    assert files == [str(tmp_path / name) for name in ("promptfooconfig.yaml", "battle/promptfooconfig.yaml")]
    assert {test["assert"][0]["type"] for test in rows_of(tmp_path)} == {"contains", "assert-set"}
    for test, battle in zip(rows_of(tmp_path / "battle"), battles().battles, strict=True):
        assert re.match(test["assert"][0]["value"], "AB"[battle.sides.index("chosen")])
        assert not re.match(test["assert"][0]["value"], "AB"[battle.sides.index("rejected")])
    with pytest.raises(DataError, match=r"promptfooconfig\.yaml exists already"):
        write_config(suite, tmp_path, "both", model="m", url=None)


@given(st.text(alphabet=st.sampled_from('{}%#"\\ \nfile:/packg.a')))
def test_no_value_is_a_template_or_a_file(text: str) -> None:
    value = escaped(text)
    if value != text:
        assert value.startswith('{{ "') and value.endswith('" }}')
        inner = value[4:-4]
        assert re.fullmatch(r'(?:[^"\\]|\\["\\])*', inner), "the literal ends where it should"
        assert re.sub(r"\\(.)", r"\1", inner) == text
    else:
        assert not re.search(r"\{\{|\{%|\{#|#\}", text)
        assert not text.lstrip().startswith(("file://", "package:"))


def expect_answers(path: Path) -> None:
    log = read_results(path)
    assert [row.error for row in log.rows] == [""] * 8
    assert [row.id for row in log.rows] == [f"c{n}" for n in range(8)]
    assert [row.answer for row in log.rows] == [case.prompt[-1]["content"] for case in cases().cases]
    assert [row.passed for row in log.rows] == [True] * 7 + [False]
    assert [row.expected for row in log.rows] == [case.expected for case in cases().cases]
    assert (log.name, log.report) == ("shop", {"successes": 7, "failures": 1, "errors": 0})
    assert {row.model for row in log.rows} == {"last"}


def expect_verdicts(path: Path) -> None:
    log = read_results(path)
    assert [(row.id, row.winner, row.passed) for row in log.rows] == [
        (f"b{n}", "chosen" if n else None, True if n else None) for n in range(6)
    ]
    assert log.rows[0].error == "overloaded"
    assert log.report == {"successes": 5, "failures": 0, "errors": 1}


def test_recorded_results_are_read() -> None:
    expect_answers(LOGS / "promptfoo.json")
    expect_verdicts(LOGS / "promptfoo-battle.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", r"has no list results\.results"),
        ('{"results": {"results": [1]}}', "has no list"),
    ],
)
def test_what_is_not_a_result_file_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_results(path)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("promptfoo") is None, reason="promptfoo, a program of Node.js, is not installed")
def test_the_program_runs_what_was_written_and_its_results_are_read(tmp_path: Path) -> None:
    for name, suite, expect in (("pf", cases(), expect_answers), ("duel", battles(), expect_verdicts)):
        folder = tmp_path / name
        config = written(suite, folder) | {"providers": ["file://model.js"]}
        (folder / "promptfooconfig.yaml").write_text(yaml.safe_dump(config))
        (folder / "model.js").write_text(MODEL)
        quiet = {"PROMPTFOO_DISABLE_TELEMETRY": "1", "PROMPTFOO_DISABLE_UPDATE": "1"}
        done = subprocess.run(
            ["promptfoo", "eval", "-c", "promptfooconfig.yaml", "-o", "out.json", "--no-cache", "--no-table"],
            check=False,  # it exits with 100 if a test fails
            cwd=folder,
            env={**os.environ, **quiet, "PROMPTFOO_CONFIG_DIR": str(tmp_path / "config")},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert (folder / "out.json").exists(), done.stdout + done.stderr
        expect(folder / "out.json")
