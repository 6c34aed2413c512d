"""prefine judge: what it prints, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from prefine.cli.app import app
from prefine.errors import EndpointError, PrefineError
from prefine.judges.endpoint import Endpoint
from tests.judges.fake import prefers_good, refusal, running

KEY = "sk-secret-4711"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    for name, word in (("dpo", "good"), ("sft", "bad")):
        rows = [{"prompt": f"question {number}", "completion": f"{word} {number}", "tokens": 2} for number in range(8)]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return ["dpo.jsonl", "sft.jsonl"]


def judged(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["judge", *map(str, arguments)])


def test_what_is_printed(files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    with running(prefers_good) as fake:
        shown = judged(
            *files, "--judge", fake.url, "--model", "m", "--key-env", "MY_KEY", "--price-in", 2, "--price-out", 10
        )
        assert shown.exit_code == 0, shown.exception
        assert fake.headers[0]["authorization"] == f"Bearer {KEY}"
    lines = shown.stdout.splitlines()
    assert lines[0].startswith("Judged by m, the candidate is better: it wins 100")
    assert any(line.startswith("  same verdict in both orders: 100") for line in lines)
    assert "  spent: 16 requests, 16 of them now; 1,600 tokens asked, 160 replied" in lines
    assert "  cost: 0.0048" in lines
    folder = Path("evaluations/dpo-against-sft")
    assert lines[-1] == f"report: {folder / 'report.html'}"
    for file in folder.rglob("*"):
        assert file.is_dir() or KEY.encode() not in file.read_bytes()
    again = judged(folder, "--judge", fake.url, "--model", "m", "--json")  # nobody answers there any more
    assert json.loads(again.stdout)["win_rates"][0]["spent"]["requests_now"] == 0


def test_connections_are_closed(files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []
    monkeypatch.setattr(Endpoint, "__exit__", lambda endpoint, *error: closed.append(endpoint.url))
    with running(prefers_good) as fake:
        judged(*files, "--judge", fake.url, "--model", "m")
    assert closed == [fake.url]


def test_an_endpoint_that_fails_is_an_error_after_the_report(files: list[str]) -> None:
    with running(lambda body, number: refusal(401)) as fake:
        shown = judged(*files, "--judge", fake.url, "--model", "m")
    assert isinstance(shown.exception, EndpointError)
    assert "a request without a key (PREFINE_JUDGE_KEY)" in str(shown.exception)
    assert "report: evaluations/dpo-against-sft/report.html" in shown.stdout


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ([], "nobody judges"),
        (["--judge", "http://h/v1"], "--judge is given without --model"),
        (["--model", "m"], "nobody judges"),
        (["--votes", "v.jsonl", "--model", "m"], "--model is given without --judge"),
        (["--judge", "h", "--model", "m"], "not the URL of an endpoint"),
        (["--judge", "http://h/v1", "--model", "m", "--price-in", "1"], "--price-in is given without --price-out"),
        (["--judge", "http://h/v1", "--model", "m", "--template", "none.txt"], "none.txt: cannot be read"),
        (["--judge", "http://h/v1", "--model", "m", "--price-in", "inf"], "--price-in is inf"),
        (["--judge", "http://h/v1", "--model", " "], "--model is blank"),
        *(
            (["--votes", "none.jsonl", option, value], f"{option} has no effect without --judge")
            for option, value in (
                *(("--template", "none.txt"), ("--key-env", "MY_KEY"), ("--at-once", "2"), ("--timeout", "60")),
                *(("--attempts", "1"), ("--max-tokens", "9")),
            )
        ),
        (["--votes", "none.jsonl", "--price-in", "1", "--price-out", "2"], "--price-in has no effect without --judge"),
        (["--votes", "none.jsonl"], "none.jsonl: cannot be read"),
        (["--votes-out", "none/votes.jsonl"], "there is no folder"),
    ],
)
def test_refusals(files: list[str], options: list[str], problem: str) -> None:
    shown = judged(*files, *options)
    assert isinstance(shown.exception, PrefineError)
    assert problem in str(shown.exception)


def test_lines_that_are_no_votes_are_named(files: list[str]) -> None:
    with running(prefers_good) as fake:
        judged(*files, "--judge", fake.url, "--model", "m", "--votes-out", "votes.jsonl")
    with Path("votes.jsonl").open("a", encoding="utf-8") as file:
        file.write("{\n" * 7)
    shown = judged("evaluations/dpo-against-sft", "--votes", "votes.jsonl")
    assert shown.exit_code == 0, shown.exception
    assert "no vote: votes.jsonl, line 9: is not valid JSON" in shown.stderr
    assert "no vote: 2 more lines" in shown.stderr
    assert "Judged by people, the candidate is better: it wins" in shown.stdout
