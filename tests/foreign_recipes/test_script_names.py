"""A name stands for its value where it is bound once, in the scope that it is read in; every binding counts."""

from __future__ import annotations

import ast

import pytest

from prefine.foreign_recipes.script_names import ScriptNames


def meant(text: str) -> str:
    """What `X` stands for in `use(X)`."""
    tree = ast.parse(text)
    names = ScriptNames(tree)
    (call,) = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "use"
    ]
    return ast.unparse(names.followed(call.args[0]))


@pytest.mark.parametrize(
    "text",
    [
        "X = 1\nuse(X)",
        "X: int\nX = 1\nuse(X)",
        "if (X := 1):\n    use(X)",
        "X = Y = 1\nuse(X)",
        "X = 1\ndef f():\n    use(X)",
        "X = 1\ndef f():\n    X = 2\n    return X\nuse(X)",
        "X = 2\nX = 3\ndef f():\n    X = 1\n    use(X)",
        "X = 1\nclass A:\n    X = 2\n    def f(self):\n        use(X)",
        "X = 1\n[X for X in (2, 3)]\nuse(X)",
        "from a import *\nX = 1\nuse(X)",
    ],
)
def test_one_binding(text: str) -> None:
    assert meant(text) == "1"


@pytest.mark.parametrize(
    "text",
    [
        "X = 1\nX += 1\nuse(X)",
        "X = 1\ndef f(X):\n    use(X)",
        "X = 1\ndef f(*, X=2):\n    use(X)",
        "X = 1\nf = lambda X: use(X)",
        "X = 1\nfor X in (2, 3):\n    use(X)",
        "X = 1\n[use(X) for X in (2, 3)]",
        "X = 1\nwhile (X := f()):\n    use(X)",
        "X = 1\n[(X := each) for each in (2, 3)]\nuse(X)",
        "X = 1\nwith f() as X:\n    use(X)",
        "X = 1\nX, y = 2, 3\nuse(X)",
        "X, y = 1, 2\nuse(X)",
        "X = 1\nimport X\nuse(X)",
        "X = 1\nfrom a import b as X\nuse(X)",
        "X = 1\nfrom a import *\nuse(X)",
        "X = 1\ndef X(): pass\nuse(X)",
        "X = 1\ntry: pass\nexcept E as X:\n    use(X)",
        "X = 1\nmatch y:\n    case [X]:\n        use(X)",
        "X = 1\nmatch y:\n    case {**X}:\n        use(X)",
        "X = 1\ndef f():\n    global X\n    X = 2\nuse(X)",
        "def g():\n    X = 1\n    def f():\n        nonlocal X\n        X = 2\n    use(X)",
        "X = 1\ndel X\nuse(X)",
        "X = {}\nX['a'] = 1\nuse(X)",
        "X = {}\nX.update(a=1)\nuse(X)",
        "X = [[]]\nX[0][0] = 1\nuse(X)",
        "use(X)",
        "X = X\nuse(X)",
    ],
)
def test_several_bindings_or_none_that_is_an_expression(text: str) -> None:
    assert meant(text) == "X"
