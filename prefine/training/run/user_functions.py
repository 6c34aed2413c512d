"""User functions that a run depends on: their names in recipes, and how a resumed run recognises them."""

from __future__ import annotations

import functools
import hashlib
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import Any

from prefine.errors import CheckpointError
from prefine.runs.atomic import JSON

GIVEN = "python:"
_given: dict[str, Callable[..., Any]] = {}


@dataclass(frozen=True)
class UserFunction:
    """A user function that affects a run's result.

    Attributes:
        field: the recipe field or argument that it was passed as.
        name: see `function_name`.
        sha256: see `function_hash`.
        may_change: whether a run may be resumed with a changed one; it then warns.
    """

    field: str
    name: str
    sha256: str
    may_change: bool


def function_name(function: Callable[..., Any]) -> str:
    """`module:function` if any process can import it, or `python:NAME` if only this process has it."""
    name, module = getattr(function, "__qualname__", ""), getattr(function, "__module__", None) or ""
    if module != "__main__" and name.isidentifier() and getattr(sys.modules.get(module), name, None) is function:
        return f"{module}:{name}"
    inner = function.func if isinstance(function, functools.partial) else function
    name = getattr(inner, "__name__", type(inner).__name__)
    return GIVEN + (re.sub(r"\W", "", name) or "function")


def given_function(function: Callable[..., Any]) -> str:
    """Register a function and return its name. A later function of the same name replaces it in this process.

    A function of a module is looked up there when it is used, so that a reloaded module counts.
    """
    name = function_name(function)
    if name.startswith(GIVEN):
        _given[name] = function
    return name


def found_function(name: str) -> Callable[..., Any] | None:
    """The function that was registered under a name; None if there is none."""
    return _given.get(name)


def function_hash(function: Callable[..., Any]) -> str:
    """SHA-256 of a function's source, or of its bytecode if it has no source of its own, as a lambda.

    Functions that it calls and variables around it are not included.
    """
    if isinstance(function, functools.partial):
        bound = [*function.args, *(part for item in sorted(function.keywords.items()) for part in item)]
        source = " ".join([function_hash(function.func), *map(_value_text, bound)])
        return hashlib.sha256(source.encode()).hexdigest()
    whole = inspect.unwrap(function)
    if not (inspect.isroutine(whole) or inspect.isclass(whole)):
        whole = type(whole)  # an object with __call__
    try:
        source = "" if getattr(whole, "__name__", "") == "<lambda>" else textwrap.dedent(inspect.getsource(whole))
    except (OSError, TypeError):
        source = ""
    source = source or _bytecode(getattr(whole, "__code__", None))
    return hashlib.sha256(source.encode()).hexdigest()


def _bytecode(code: CodeType | None) -> str:
    if code is None:
        return ""
    return repr((code.co_code.hex(), code.co_names, code.co_varnames, [_value_text(each) for each in code.co_consts]))


def _value_text(value: object) -> str:
    """A value as text that is the same in every process: without addresses, and with sorted sets."""
    if isinstance(value, CodeType):
        return _bytecode(value)
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(map(_value_text, value)))}}}"
    if callable(value):
        return function_hash(value)
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def continued_code(
    manifest: Mapping[str, Any] | None, functions: Sequence[UserFunction]
) -> tuple[dict[str, JSON], list[str]]:
    """The manifest's entry for the user functions, and a warning for each that changed while the run was stopped.

    Args:
        manifest: manifest of the run that is resumed; None for a new run.
        functions: the functions that are passed now.

    Raises:
        CheckpointError: a function that may not change has changed or is missing.
    """
    before: Mapping[str, Any] = (manifest or {}).get("code") or {}
    code: dict[str, JSON] = {}
    warnings = []
    for function in functions:
        known = before.get(function.field, {}).get("sha256", [])
        if known and known[-1] != function.sha256 and not function.may_change:
            raise CheckpointError(
                f"--resume: {function.field}: {function.name} is not the function that this run began with",
                "Pass the original function, or start a run under another name.",
            )
        hashes = [*known, *([function.sha256] if known[-1:] != [function.sha256] else [])]
        if len(hashes) > 1:
            warnings.append(
                f"{function.field}: {function.name} was changed while this run was stopped: earlier steps used "
                "another version of it."
            )
        code[function.field] = {"name": function.name, "sha256": hashes}
    return code, warnings
