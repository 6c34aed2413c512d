"""A run that is going: 20 of 40 steps, two evaluations, and a clock that tests set."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass
class Going:
    """A run's folder, written step by step."""

    path: Path
    total: int = 40

    def write(self, **changed: Any) -> None:
        """The manifest."""
        told = {"stage": "dpo", "status": "running", "total_steps": self.total, "model": {"name": "tiny"}, **changed}
        (self.path / "manifest.json").write_text(json.dumps(told), encoding="utf-8")

    def add(self, *rows: dict[str, Any]) -> None:
        """Lines of metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))

    def step(self, number: int) -> None:
        """One step's line."""
        self.add({"kind": "train", "step": number, "loss": 1 / number, "seconds": 2.0, "tokens_per_s": 50.0})


@pytest.fixture
def going(tmp_path: Path) -> Going:
    run = Going(tmp_path / "run")
    run.path.mkdir()
    run.write()
    for number in range(1, 21):
        run.step(number)
    run.add({"kind": "heldout", "step": 0, "loss": 0.693}, {"kind": "heldout", "step": 20, "loss": 0.512})
    return run
