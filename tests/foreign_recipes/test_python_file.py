"""A script is parsed, never run; literals are taken, everything else keeps its source text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prefine.errors import RecipeError
from prefine.foreign_recipes.python_file import Script


def script(tmp_path: Path, text: str) -> Script:
    (tmp_path / "train.py").write_text(text)
    return Script(tmp_path / "train.py")


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("5e-7", 5e-7),
        ("-1", -1),
        ("[1, 'a', None]", [1, "a", None]),
        ("{'a': (1, 2)}", {"a": [1, 2]}),
        ("torch.bfloat16", "bfloat16"),
        ("2 * 8", 16),
        ("BETA", 0.3),
        ("ALIAS", 0.3),
    ],
)
def test_literals_and_names_that_stand_for_one_are_taken(tmp_path: Path, written: str, value: Any) -> None:
    text = f"BETA = 0.3\nALIAS = BETA\nconfig = DPOConfig(x={written})\n"
    (call,) = script(tmp_path, text).calls("DPOConfig")
    assert call.settings["x"].value == value
    assert call.settings["x"].expression is None


@pytest.mark.parametrize(
    "written",
    ["os.environ['X']", "f(1)", "TWICE", "UNKNOWN", "1 / 0", "'a' * 9", "SELF", "{**a}", "f'{x}'", "torch.f()"],
)
def test_what_would_have_to_be_run_keeps_its_source_text(tmp_path: Path, written: str) -> None:
    text = f"TWICE = 1\nTWICE = 2\nSELF = SELF\nconfig = DPOConfig(x={written})\n"
    (call,) = script(tmp_path, text).calls("DPOConfig")
    assert call.settings["x"].value is None
    assert call.settings["x"].expression == written


def test_nothing_of_the_script_runs(tmp_path: Path) -> None:
    text = f"open({str(tmp_path / 'trace')!r}, 'w')\nDPOConfig(beta=0.1)\nraise SystemExit\n"
    assert [call.name for call in script(tmp_path, text).calls("DPOConfig")] == ["DPOConfig"]
    assert not (tmp_path / "trace").exists()


def test_arguments_without_a_name_and_unpacked_ones_are_kept(tmp_path: Path) -> None:
    (call,) = script(tmp_path, "trl.DPOConfig('out', **more, beta=1)\n").calls("DPOConfig")
    assert [what for what, _ in call.unread] == ["'out'", "**more"]


def test_a_data_set_is_followed_through_names_splits_and_changes(tmp_path: Path) -> None:
    text = "d = load_dataset('a/b', 'c')['train']\ne = d.map(f)\nDPOTrainer(train_dataset=e)\n"
    read = script(tmp_path, text)
    (call,) = read.calls("DPOTrainer")
    source, changes = read.dataset(call.expressions["train_dataset"])
    assert source == {"path": "a/b", "name": "c", "split": "train"}
    assert [what for what, _ in changes] == [".map(…), line 2"]


@pytest.mark.parametrize("content", [b"def f(:\n", b"\xff\xfe\x00", b"x = 1\x00"])
def test_what_is_not_python_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.py").write_bytes(content)
    with pytest.raises(RecipeError, match=r"is not Python that can be parsed. Correct the file"):
        Script(tmp_path / "a.py")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        Script(tmp_path / "a.py")
