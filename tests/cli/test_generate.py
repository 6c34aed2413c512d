"""`prefine generate`: prompts in, answers out, in order; the same answers whatever stands beside them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prefine.cli.app import main
from prefine.data.reading.quarantine import Quarantine
from prefine.generation.answer_rows import GeneratedRows
from prefine.generation.sampling import Sampling
from prefine.generation.slot_writer import SlotWriter
from prefine.generation.writer import ActiveSequence
from prefine.models.loading import load
from prefine.recipe.sections import ModelSection
from tests.training import tiny

Generate = Callable[..., tuple[int, list[dict[str, Any]], str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_model(tmp_path_factory.mktemp("model") / "T")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return tiny.write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"question {i}", "id": f"p{i}"} for i in range(9)])


@pytest.fixture
def generate(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Generate:
    """`generate(option, …)`: exit code, rows on stdout, stderr."""
    monkeypatch.setattr(load, "choose_dtype", lambda asked, device: (torch.float32, "for the test"))

    def run(*arguments: str | Path) -> tuple[int, list[dict[str, Any]], str]:
        with pytest.raises(SystemExit) as leaving:
            main(["generate", str(model), *map(str, arguments)])
        told = capsys.readouterr()
        code = leaving.value.code
        return int(code or 0), [json.loads(line) for line in told.out.splitlines()], told.err

    return run


def test_every_prompt_is_answered_in_order(generate: Generate, prompts: Path) -> None:
    code, rows, said = generate("--prompts", prompts, "--max-new-tokens", "6", "--slots", "2")
    assert code == 0
    assert [row["id"] for row in rows] == [f"p{i}" for i in range(9)]
    assert all(row["finish_reason"] in ("stop", "length") and row["tokens"] <= 6 for row in rows)
    assert all(row["logprob"] < 0 for row in rows)
    assert "9 answers of" in said


def test_a_row_does_not_depend_on_slots(generate: Generate, prompts: Path) -> None:
    few = generate("--prompts", prompts, "--max-new-tokens", "6", "--slots", "1")[1]
    many = generate("--prompts", prompts, "--max-new-tokens", "6", "--slots", "16")[1]
    assert [row["completion"] for row in few] == [row["completion"] for row in many]


def test_samples_differ_and_greedy_ones_do_not(generate: Generate, prompts: Path) -> None:
    drawn = generate("--prompts", prompts, "--max-new-tokens", "6", "--samples", "3")[1]
    assert [row["sample"] for row in drawn] == [0, 1, 2] * 9
    assert len({row["completion"] for row in drawn[:3]}) == 3
    greedy = generate("--prompts", prompts, "--max-new-tokens", "6", "--samples", "3", "--temperature", "0")[1]
    assert len({row["completion"] for row in greedy[:3]}) == 1


def test_what_it_writes_is_read_again(generate: Generate, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    code, rows, _ = generate("--prompts", prompts, "--max-new-tokens", "6", "--out", out)
    assert (code, rows) == (0, [])
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in written] == [f"p{i}" for i in range(9)]
    again = generate("--prompts", out, "--max-new-tokens", "6")[1]
    assert [row["completion"] for row in again] == [row["completion"] for row in written]


def test_too_long_prompts_are_cut_and_said(generate: Generate, tmp_path: Path) -> None:
    """The rows are as they came; one that leaves no room even when cut goes to quarantine."""
    turns = [{"role": "system", "content": "long " * 200}, {"role": "user", "content": "x"}]
    rows = [{"prompt": "short"}, {"prompt": "long " * 200}, {"prompt": ""}, {"prompt": turns}, {"prompt": "short, too"}]
    source, aside = tiny.write_rows(tmp_path / "mixed.jsonl", rows), tmp_path / "aside.jsonl"
    code, found, said = generate("--prompts", source, "--max-new-tokens", "4", "--quarantine", aside)
    assert code == 0
    assert [row["prompt"] for row in found] == ["short", "long " * 200, "short, too"]
    assert "1 prompt cut to leave room for an answer, oldest turns first" in said
    refused = [json.loads(line) for line in aside.read_text().splitlines()]
    assert [row["line"] for row in refused] == [3, 4]
    assert refused[1]["reason"] == "leaves no room for an answer in the model's context"
    assert "2 rows could not be answered" in said


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--top-p", "0"], "--top-p is 0.0; it must be above 0, at most 1"),
        (["--repetition-penalty", "-1"], "--repetition-penalty is -1.0; it must be from 0.001 to 1000"),
        (["--min-p", "2"], "--min-p is 2.0; it must be from 0 to 1"),
    ],
)
def test_settings_out_of_range_are_one_line(arguments: list[str], told: str, generate: Generate, prompts: Path) -> None:
    code, rows, said = generate("--prompts", prompts, *arguments)
    assert (code, rows) == (2, [])
    assert said.startswith("error: ") and told in said and said.count("\n") == 1


def test_a_file_that_is_not_there_is_one_line(generate: Generate, tmp_path: Path) -> None:
    code, _, said = generate("--prompts", tmp_path / "nothing.jsonl")
    assert code == 2
    assert "nothing.jsonl" in said and said.count("\n") == 1


@pytest.mark.parametrize("quarantine", [False, True])
def test_what_is_read_is_not_written_over(
    quarantine: bool, generate: Generate, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the paths are spelled differently."""
    monkeypatch.chdir(prompts.parent)
    before = prompts.read_bytes()
    options = (
        ["--out", "aside.jsonl", "--quarantine", prompts.parent / "aside.jsonl"]
        if quarantine
        else ["--out", "prompts.jsonl"]
    )
    code, rows, said = generate("--prompts", prompts, *options)
    assert (code, rows, said.count("\n")) == (2, [], 1)
    assert ("--out and --quarantine are both" if quarantine else "--out is prompts.jsonl, which is a source") in said
    assert prompts.read_bytes() == before


def test_an_answer_that_fills_the_context_is_refused(generate: Generate, prompts: Path, tmp_path: Path) -> None:
    code, rows, said = generate("--prompts", prompts, "--max-new-tokens", "100000", "--out", tmp_path / "out.jsonl")
    assert (code, rows, said.count("\n")) == (2, [], 1)
    assert "max_new_tokens is 100000, but the model's context is" in said
    assert not (tmp_path / "out.jsonl").exists()


def test_slots_stay_full_while_an_early_answer_is_long(
    model: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first answer takes 40 steps, the others two each: with two slots, both are busy until prompts run out."""
    loaded = load.load_model(ModelSection(name=str(model), dtype="float32"), None, trainable=False)
    real, active = SlotWriter._decode, list[int]()

    def shorter(self: SlotWriter) -> None:
        active.append(len(self._active))
        real(self)

    monkeypatch.setattr(SlotWriter, "_decode", shorter)
    monkeypatch.setattr(ActiveSequence, "add", lambda self, new, tokenizer: told(self, new.token, new.logprob))

    def told(writing: ActiveSequence, token: int, logprob: float) -> None:
        writing.tokens.append(token)
        writing.logprobs.append(logprob)
        if len(writing.tokens) == (40 if writing.number == 0 else 3):
            writing.finish = "length"

    with Quarantine(None) as refused:
        rows = list(GeneratedRows([str(prompts)], refused).by(loaded, Sampling(40), samples=4, slots=2))
    assert len(rows) == 36
    assert active[:30] == [2] * 30
