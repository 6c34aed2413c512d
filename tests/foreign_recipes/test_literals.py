"""Reading a literal ends soon, and with a value of a bounded size, whatever the script holds."""

from __future__ import annotations

import ast
import time
from pathlib import Path

import pytest

from prefine.foreign_recipes.literals import Literals
from prefine.foreign_recipes.python_file import Script
from prefine.foreign_recipes.script_names import ScriptNames


def value(text: str) -> object:
    tree = ast.parse(text)
    (call,) = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return Literals(ScriptNames(tree)).value(call.args[0])


def test_a_number_up_to_the_bound_is_taken() -> None:
    assert value("use(1000000000 * 1000000000)") == 10**18


@pytest.mark.parametrize(
    "text",
    [
        "use(1e308 * 1e308)",
        "use(1e999)",
        "use(1e999 - 1e999)",
        f"use({10**400} / 3)",
        f"use(-{10**400} * 0.5)",
        f"use(0x{'f' * 9000})",
        "use(0x" + "f" * 9000 + " + 1)",
        "use(" + "+".join(["1"] * 300) + ")",
        "use(" + repr("a" * 200_000) + ")",
        "a0 = 1\n" + "".join(f"a{n + 1} = a{n} + a{n}\n" for n in range(45)) + "use(a45)",
        "a0 = [1]\n" + "".join(f"a{n + 1} = [a{n}, a{n}]\n" for n in range(45)) + "use(a45)",
        "a0 = 'x' * 9\n" + f"a1 = {'a' * 9000!r}\n" + "use([" + "a1, " * 100 + "])",
    ],
)
def test_what_is_too_large_or_takes_too_long_is_no_value(text: str) -> None:
    begun = time.process_time()
    with pytest.raises(ValueError):
        value(text)
    assert time.process_time() - begun < 2


def test_a_script_of_such_values_keeps_each_as_text(tmp_path: Path) -> None:
    """Also numbers that Python does not print, and expressions that are nested too deeply to print."""
    deep = "+".join(["1"] * 900)
    text = f"x = DPOConfig(beta=0x{'f' * 9000}, a={deep}, seed=1)\nx.b = 0x{'f' * 9000}\n"
    (tmp_path / "train.py").write_text(text)
    (call,) = Script(tmp_path / "train.py").calls("DPOConfig")
    assert call.settings["beta"].expression == "what is in line 1"
    assert call.settings["a"].expression is not None
    assert call.settings["b"].expression == "what is in line 2"
    assert call.settings["seed"].value == 1


def test_many_values_share_a_bound(tmp_path: Path) -> None:
    sums = "a0 = 1\n" + "".join(f"a{n + 1} = a{n} + a{n}\n" for n in range(45))
    text = sums + "DPOConfig(" + ", ".join(f"k{n}=a45" for n in range(2000)) + ")\n"
    (tmp_path / "train.py").write_text(text)
    begun = time.process_time()
    (call,) = Script(tmp_path / "train.py").calls("DPOConfig")
    assert call.settings["k1999"].expression == "a45"
    assert time.process_time() - begun < 10
