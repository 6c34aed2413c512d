"""`prefine serve --engine`: options reach the engine, or are refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from prefine.cli.app import main
from prefine.engines import run_engine as engines


def served(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, dict[str, Any]]:
    """The exit code, and what `run_engine` was asked for."""
    asked: dict[str, Any] = {}

    def run(engine: str, names: list[str], **settings: Any) -> int:
        asked.update(settings, engine=engine, names=names)
        return 0

    monkeypatch.setattr(engines, "run_engine", run)
    with pytest.raises(SystemExit) as leaving:
        main(["serve", *arguments])
    return int(leaving.value.code or 0), asked


def test_all_that_an_engine_takes_reaches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFINE_API_KEY", "secret")
    options = ("--host", "::1", "--port", "8123", "--slots", "4", "--context", "2048", "--start-timeout", "60")
    more = ("--engine-arg=--seed=1", "--engine-arg", "--no-enable-prefix-caching")
    assert served(monkeypatch, "runs/sft", "runs/dpo", "--engine", "vllm", *options, *more) == (
        0,
        {
            "engine": "vllm",
            "names": ["runs/sft", "runs/dpo"],
            "host": "::1",
            "port": 8123,
            "api_key": "secret",
            "slots": 4,
            "context": 2048,
            "more": ["--seed=1", "--no-enable-prefix-caching"],
            "start_timeout_s": 60.0,
        },
    )


def test_what_is_left_out_is_the_engines_own_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFINE_API_KEY", raising=False)
    code, asked = served(monkeypatch, "m.gguf", "--engine", "llama.cpp")
    assert (code, asked["slots"], asked["context"], asked["api_key"], asked["more"]) == (0, None, None, None, ())
    assert (asked["host"], asked["port"], asked["start_timeout_s"]) == ("127.0.0.1", 8000, 900.0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--engine", "vllm", "--prefix-tokens", "0"), "--prefix-tokens: it is a setting of prefine's own engine"),
        (("--engine", "vllm", "--max-body-mib", "4"), "--max-body-mib: it is a setting"),  # the default, but written
        (("--start-timeout", "60"), "--start-timeout: there is no --engine that it is for"),
        (("--engine-arg=--seed=1",), "--engine-arg: there is no --engine"),
        (("--engine", "ollama"), "--engine: 'ollama' is not an engine. Choose one of vllm, llama.cpp"),
        (("--engine", "vllm", "--host", "0.0.0.0"), "can be reached from other machines, and there is no API key"),
    ],
)
def test_what_no_engine_takes_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    monkeypatch.delenv("PREFINE_API_KEY", raising=False)
    with pytest.raises(SystemExit) as leaving:
        main(["serve", "runs/dpo", *arguments])
    assert leaving.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1
