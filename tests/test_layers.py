"""The package table of CONTRIBUTING.md holds: a module imports from its own package or from what the table lists above.

Every import statement counts, also those inside functions and under TYPE_CHECKING.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "prefine"

# They meet only through files in run folders.
STAGES = {
    f"prefine.training.{stage}"
    for stage in ("stages.sft", "stages.dpo", "stages.kto", "stages.orpo", "stages.reward", "rl.stage")
}

# Reading data and writing pages must be cheap: none of these reaches torch by any path.
WITHOUT_TORCH = (
    "runs",
    "recipe",
    "foreign_recipes",
    "recipes",
    "feedback",
    "annotation",
    "annotation.importing",
    "annotation.exporting",
    "report",
    "watching",
    "web",
    "annotation.page",
    "comparisons",
    "judges",
    "regression",
    "data.reading",
    "data.records",
    "data.audit",
)
TORCH_LOADING = {"torch", "transformers", "peft", "accelerate", "bitsandbytes"}

# Objectives import torch and nothing else, but the language's own means of writing types and shapes.
OBJECTIVES_MAY_IMPORT = {"torch", "__future__", "collections", "dataclasses", "math", "typing"}


def package_table() -> dict[str, tuple[int, int]]:
    """Package or module, without "prefine." -> its layer and its place in the table; lower layers come first."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| ((?:`[\w.]+` ?)+)\|", text, re.MULTILINE)
    return {
        name: (int(layer), place)
        for place, (layer, names) in enumerate(rows)
        for name in re.findall(r"`([\w.]+)`", names)
    }


TABLE = package_table()


def module_name(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def listed(module: str) -> str:
    """The entry of the table that a module belongs to: its own name or that of the nearest package around it."""
    name = module.removeprefix("prefine.")
    while name not in TABLE and "." in name:
        name = name.rpartition(".")[0]
    return name


@cache
def imports(module: str) -> frozenset[str]:
    """The modules that a module of prefine names in its import statements, as full names."""
    return frozenset(_imports(ast.parse(MODULES[module].read_text(encoding="utf-8")), module))


def _imports(tree: ast.Module, module: str) -> Iterator[str]:
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    if module == "prefine":  # its public names are imported when they are asked for, and here for type checkers only
        tree.body = [node for node in tree.body if not isinstance(node, ast.If)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                origin = ".".join([*package.split(".")[: len(package.split(".")) - node.level + 1], origin]).rstrip(".")
            names = [f"{origin}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else origin for name in names)


def imported_from_prefine(module: str) -> set[str]:
    """`from prefine import __version__` is allowed everywhere; prefine/__init__.py loads its names lazily."""
    return {name for name in imports(module) if name.startswith("prefine.")}


def reached(module: str) -> set[str]:
    """All modules of prefine that importing one can lead to, itself and the packages around each included."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen or name not in MODULES or name == "prefine":
            continue
        seen.add(name)
        waiting += [*imported_from_prefine(name), name.rpartition(".")[0]]
    return seen


def modules_without_torch() -> list[str]:
    return sorted(
        name
        for name in MODULES
        if listed(name) in WITHOUT_TORCH or TABLE.get(listed(name), (99, 0))[0] == 0 or name == "prefine"
    )


def test_the_table_names_what_exists() -> None:
    assert len(TABLE) > 20
    missing = {name for name in TABLE if name not in {"prefine", "samples"} and f"prefine.{name}" not in MODULES}
    assert not missing, f"CONTRIBUTING.md lists {missing}"


def test_every_module_is_in_the_table() -> None:
    homeless = {name for name in MODULES if listed(name) not in TABLE}
    assert not homeless, f"give {homeless} a row in the table of CONTRIBUTING.md"


def test_imports_go_to_the_same_package_or_to_one_listed_above() -> None:
    wrong = [
        f"{module} (layer {TABLE[listed(module)][0]}) imports {name}"
        for module in MODULES
        if module != "prefine"
        for name in imported_from_prefine(module)
        if TABLE[listed(name)][1] > TABLE[listed(module)][1]
    ]
    assert not wrong


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Kahn's algorithm: what is left after removing, again and again, what imports nothing that is left."""
    left = {name: imported_from_prefine(name) & MODULES.keys() - {name} for name in MODULES if name != "prefine"}
    while free := {name for name, needs in left.items() if not needs & left.keys()}:
        left = {name: needs for name, needs in left.items() if name not in free}
    assert not left, {name: sorted(needs & left.keys()) for name, needs in left.items()}


@pytest.mark.parametrize("module", sorted(STAGES))
def test_stages_do_not_import_each_other(module: str) -> None:
    assert module in MODULES
    assert not (reached(module) & STAGES) - {module}


def test_reading_and_reporting_reach_no_torch() -> None:
    paths = {
        f"{module} reaches {name}, which imports {found}"
        for module in modules_without_torch()
        for name in reached(module)
        for found in imports(name)
        if found.split(".")[0] in TORCH_LOADING
    }
    assert not paths


@pytest.mark.parametrize("module", [name for name in MODULES if listed(name) == "objectives"])
def test_objectives_import_torch_and_each_other_only(module: str) -> None:
    strange = {
        name
        for name in imports(module)
        if name.split(".")[0] not in OBJECTIVES_MAY_IMPORT and not name.startswith("prefine.objectives")
    }
    assert not strange


def test_modules_without_torch_run_without_it() -> None:
    """What the statements say holds when run: no third-party library brings torch in."""
    code = f"""
import importlib, sys
for name in {modules_without_torch()!r}:
    importlib.import_module(name)
    found = {TORCH_LOADING!r} & sys.modules.keys()
    assert not found, (name, found)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", [name for name in MODULES if listed(name) == "cli"])
def test_command_line_modules_load_only_typer_and_the_standard_library(module: str) -> None:
    """At their top, that is: `prefine --help` loads all of them."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    allowed = {*sys.stdlib_module_names, "typer"}
    light = {"prefine", "prefine.errors", "prefine.terminal"}
    heavy = {
        name
        for name in _imports(tree, module)
        if name.split(".")[0] not in allowed and name not in light and listed(name) != "cli"
    }
    assert not heavy


# The only module that exchanges anything with other processes: sharding a model over them has one place to change.
PROCESSES = "prefine.training.loop.processes"
# How accelerate's Accelerator says which process this is, and what it exchanges.
OF_PROCESSES = {
    *("num_processes", "process_index", "is_main_process", "is_local_main_process", "wait_for_everyone"),
    *("main_process_first", "gather_for_metrics", "accelerator.reduce", "accelerator.gather"),
}


def test_one_module_talks_to_other_processes() -> None:
    talking = {name: sorted(exchanges(name)) for name in MODULES if name != PROCESSES}
    assert not {name: used for name, used in talking.items() if used}, f"use {PROCESSES}.Processes"


def exchanges(module: str) -> Iterator[str]:
    """What a module uses to exchange something with other processes."""
    for name in imports(module):
        if name.split(".")[0] == "accelerate" or "torch.distributed" in name:
            yield name
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            used = ast.unparse(node)
            if used.endswith(tuple(OF_PROCESSES)) or used.startswith("torch.distributed"):
                yield used
