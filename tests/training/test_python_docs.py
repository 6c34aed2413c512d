"""docs/python.md and the notebooks do what they say, on T."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.training import tiny

DOCS = Path(__file__).parents[2] / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
# PPO's answers to T's prompts are short, and its guards are for real models.
QUICK: dict[str, dict[str, Any]] = {"ppo": tiny.UNGUARDED}


@pytest.fixture
def beside_the_recipes(model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the files that the page speaks of."""
    monkeypatch.chdir(tmp_path)
    for stage in ("sft", "dpo", "reward", "ppo"):
        changes = {"training.max_steps": 2, **QUICK.get(stage, {})}
        tiny.written(tiny.recipe(stage, Path("runs") / stage, model, data, changes), tmp_path / f"{stage}.yaml")
    (tmp_path / "runs").mkdir()
    (tmp_path / "my.jsonl").write_bytes(data.read_bytes())
    return tmp_path


def test_the_blocks_of_the_python_page_run_in_their_order(
    beside_the_recipes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "python.md").read_text("utf-8"), re.DOTALL)
    assert len(blocks) > 7
    names: dict[str, Any] = {}
    for number, block in enumerate(blocks):
        code = compile(block, f"python.md, block {number}", "exec")
        exec(code, names)  # noqa: S102 - the page's own
    assert "keyword training: training.epochs is -1, but must be greater than 0" in capsys.readouterr().out
    assert names["run"].recipe["dpo"]["loss"] == "function"
    assert len(names["losses"]) == 2
    assert names["scored"][0]["completion"] == names["answers"][0]["completion"]


@pytest.mark.parametrize("name", ["polite", "dpo_positive"])
def test_functions_of_ones_own_take_ten_lines(name: str) -> None:
    page = (DOCS / "python.md").read_text("utf-8")
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if f"def {name}" in block]
    assert len([line for line in block.splitlines() if line.strip()]) <= 10


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path: Path, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    own = {"MODEL": str(model), "DATA": str(data), "STEPS": 2, "UPDATES": 3, "KL_LIMIT": 1e-9}
    for number, cell in enumerate(json.loads(path.read_text("utf-8"))["cells"]):
        if cell["cell_type"] != "code":
            continue
        exec(compile("".join(cell["source"]), f"{path.name}, cell {number}", "exec"), names)  # noqa: S102
        if "parameters" in cell["metadata"].get("tags", []):
            assert own.keys() >= {name for name in names if name.isupper()} - {"QUESTIONS"}
            names |= {name: value for name, value in own.items() if name in names}
    runs = sorted((tmp_path / "runs").glob("*/*/manifest.json"))
    assert [json.loads(run.read_text())["status"] for run in runs] == ["finished"] * 2
    if path.stem == "reward-hacking":
        assert names["guarded"].metrics("guard")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stored_without_outputs(path: Path) -> None:
    notebook = json.loads(path.read_text("utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert code and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert all(cell["id"] for cell in notebook["cells"])
