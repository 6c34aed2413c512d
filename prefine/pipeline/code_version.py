"""A hash of the source code that decides a stage's result, so that a stage runs again where its code has changed.

Found by reading imports as text, so torch is not loaded: a stage's module, and all modules of prefine that it names,
directly or not. Modules that only show things are left out.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from functools import cache
from importlib.resources import files
from pathlib import Path

_API = "prefine.api"
_ROOTS = {
    "evaluate": "prefine.evaluation.comparing.evaluate",
    "export": "prefine.export.run_export",
    "report": "prefine.report.overview.page",
}
# Files that come with prefine and that a module reads, which decide a result besides the code.
_DATA = {
    "prefine.judges.template": "judges/templates/*",
    "prefine.regression.items": "regression/set/*.jsonl",
    "prefine.report.page": "report/templates/*",
}
_FROM = re.compile(r"^\s*from (prefine[\w.]*) import (?:\(([^)]*)\)|([^(\n]+))", re.MULTILINE)
_NAMED = re.compile(r"\bprefine(?:\.\w+)+")
_SHOWS = (
    *("prefine.api", "prefine.cli", "prefine.formatting", "prefine.named_model", "prefine.pipeline", "prefine.report"),
    *("prefine.run", "prefine.terminal", "prefine.terminal_text", "prefine.watching", "prefine.serving", "prefine.web"),
    *("prefine.training.display", "prefine.training.notebook", "prefine.training.pace", "prefine.training.tracking"),
)


@cache
def code_digest(method: str) -> str:
    """SHA-256 over the modules of a method and its data in the package, by name and content, in hexadecimal."""
    modules = modules_of(method)
    digest = hashlib.sha256()
    for name, path in sorted(modules.items()):
        digest.update(f"{name}\0".encode() + path.read_bytes())
    for path in data_of(modules):
        digest.update(f"{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def modules_of(method: str) -> dict[str, Path]:
    """The modules that decide a method's result, by name."""
    left_out = tuple(name for name in _SHOWS if method != "report" or name != "prefine.report")
    return _modules(root_of(method), left_out)


def data_of(modules: Collection[str]) -> list[Path]:
    """The files that come with prefine and that these modules read, such as the items of the regression set."""
    package = Path(str(files("prefine")))
    return sorted(path for module, pattern in _DATA.items() if module in modules for path in package.glob(pattern))


@cache
def root_of(method: str) -> str:
    """The module that runs a method; for one that trains, the one that its function of prefine.api imports."""
    if method in _ROOTS:
        return _ROOTS[method]
    text = _path_of(_API).read_text("utf-8")  # type: ignore[union-attr]
    body = text.partition(f"\ndef {method}(")[2].partition("\ndef ")[0]
    found = re.search(rf"from (prefine\.training[\w.]*) import run_{method}\b", body)
    if found is None:
        raise LookupError(f"prefine.api has no function {method} that imports run_{method}")
    return found[1]


def _modules(root: str, left_out: tuple[str, ...]) -> dict[str, Path]:
    """The modules that a module needs, and itself, by name."""
    found: dict[str, Path] = {}
    waiting = [root]
    while waiting:
        name = waiting.pop()
        if name in found or any(name == each or name.startswith(f"{each}.") for each in left_out):
            continue
        path = _path_of(name)
        if path is not None:
            found[name] = path
            waiting += _names_in(path)
    return found


@cache
def _names_in(path: Path) -> set[str]:
    """Modules of prefine that a file names; methods share most of their modules."""
    text = path.read_text("utf-8")
    names = set(_NAMED.findall(text))
    for package, inside, on_line in _FROM.findall(text):
        names |= {f"{package}.{each.split()[0]}" for each in (inside or on_line).split(",") if each.strip()}
    # A name may be that of a function in a module.
    return names | {name.rpartition(".")[0] for name in names}


@cache
def _path_of(name: str) -> Path | None:
    """A module's file; None if there is none."""
    base = Path(str(files("prefine"))).joinpath(*name.split(".")[1:])
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if name != "prefine" and path.is_file():
            return path
    return None
