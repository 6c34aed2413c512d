"""`generate` and `score` hold a block of rows at a time, however many there are."""

from __future__ import annotations

import gc
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from prefine.cli.app import main
from prefine.evaluation import score_rows as scores
from prefine.generation import answer_rows as generation
from prefine.generation import row_settings
from prefine.generation.writer import Generated, Request
from prefine.models.loading import load
from prefine.models.loading.load import LoadedModel
from prefine.models.scoring import packed_scorer as reward
from prefine.recipe.sections import ModelSection
from prefine.runs.row_file import RowFile
from tests.evaluation.readiness.test_measures import Fake, words
from tests.training import tiny

LETTERS = 1500


class Instant:
    """A writer whose answers are done at once."""

    asked = 0

    def __init__(self, *given: object) -> None:
        self._queue: list[int] = []

    def add(self, request: Request) -> int:
        Instant.asked += 1
        self._queue.append(len(self._queue))
        return self._queue[-1]

    def step(self) -> list[tuple[int, Generated]]:
        return [(number, Generated((1,), (-1.0,), "a", "stop", True)) for number in self._queue]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tiny.save_model(tmp_path_factory.mktemp("model") / "T")
    return load.load_model(ModelSection(name=str(folder), dtype="float32"), None, trainable=False)


@pytest.fixture(autouse=True)
def stand_ins(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models that cost nothing, and blocks that are small beside the files."""
    monkeypatch.setattr(generation, "writer_for", Instant)
    monkeypatch.setattr(generation, "_BLOCK_A_SLOT", 1)
    monkeypatch.setattr(generation, "room_for_prompts", lambda model, most: 10**6)
    monkeypatch.setattr(scores, "_BLOCK", 64)
    monkeypatch.setattr(reward, "load_reward", lambda section: Fake(words))
    monkeypatch.setattr(row_settings, "settings_of_scores", lambda reward: {"model": "fake"})
    monkeypatch.setattr(load, "load_model", lambda *given, **options: loaded)
    monkeypatch.setattr("prefine.named_model.locate_model", lambda name: None)
    monkeypatch.setattr(Instant, "asked", 0)


def source(folder: Path, count: int) -> Path:
    """Rows that fill memory if they are kept; every eighth cannot be used."""
    path = folder / f"{count}.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            row: dict[str, Any] = {"prompt": f"{number} ".ljust(LETTERS, "x"), "completion": "a"}
            file.write(json.dumps(row if number % 8 else {"prompt": [row["prompt"]], "completion": 3}) + "\n")
    return path


def peak_bytes(verb: str, rows: Path) -> int:
    """The most memory that Python objects took."""
    given = ["--prompts", rows, "--slots", 1] if verb == "generate" else [rows]
    gc.collect()
    tracemalloc.start()
    try:
        with pytest.raises(SystemExit) as leaving:
            main([verb, "MODEL", *map(str, given), "--out", f"{rows}.out", "--quarantine", f"{rows}.bad"])
        assert leaving.value.code == 0
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("verb", ["generate", "score"])
def test_memory_does_not_follow_the_rows(verb: str, tmp_path: Path) -> None:
    few, many = source(tmp_path, 256), source(tmp_path, 768)
    peak_bytes(verb, few)  # what is imported and kept for ever
    least = peak_bytes(verb, few.rename(tmp_path / "again.jsonl"))
    growth = peak_bytes(verb, many) - least
    assert growth < (768 - 256) * LETTERS / 3, f"{growth:,} bytes more"
    assert len((tmp_path / "768.jsonl.out").read_text().splitlines()) == 768 * 7 // 8


def test_a_thousand_million_samples_come_as_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first rows are there when one block was asked for."""
    real = RowFile.append

    def stopping(self: RowFile, row: Any) -> None:
        real(self, row)
        if self.rows == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(RowFile, "append", stopping)
    prompts, out = tiny.write_rows(tmp_path / "in.jsonl", [{"prompt": "Q"}]), tmp_path / "out.jsonl"
    with pytest.raises(SystemExit) as leaving:
        main(["generate", "MODEL", "--prompts", str(prompts), "--samples", "1000000000", "--out", str(out)])
    assert leaving.value.code == 130
    rows = [json.loads(line) for line in Path(f"{out}.partial").read_text().splitlines()]
    assert [row["sample"] for row in rows] == [0, 1, 2]
    assert Instant.asked == 64
