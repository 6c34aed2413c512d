"""The house of design.md: a module imports from its own room or from a lower floor, never sideways or up.

Every import statement counts, also those inside functions and under TYPE_CHECKING; but not those of the public names.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1] / "prefine"

# Room -> floor. A room is a folder, or a module that stands alone beside the folders; ENTRANCE is all of floor 0.
ENTRANCE = "(floor 0)"
FLOOR_0 = {
    "prefine",
    "atomic",
    "cache",
    "errors",
    "json_reading",
    "nearby",
    "terminal",
    "terminal_text",
    "ownership",
    "paths",
    "recipe",
    "recipe_ppo",
    "recipe_python",
    "recipe_effects",
    "recipe_foreign_names",
    "recipe_loading",
    "recipe_problems",
    "recipe_shipped",
    "recipe_template",
    "recipe_text",
    "records",
    "row_rules",
    "rounding",
    "row_list",
    "rundir",
    "text_form",
}
FLOORS = {
    ENTRANCE: 0,
    "data": 1,
    "objectives": 1,
    "models": 2,
    "evaluation": 3,
    # A training run samples from its model and writes its report, so it stands on evaluation.
    "training": 4,
    "annotation": 4,
    "serving": 4,
    "export": 4,
    "named_model": 5,
    "run": 6,
    "api": 7,
    "pipeline": 8,
    "memory": 8,
    "cli": 9,
    "__main__": 10,
}

# They meet only through files in run directories.
STAGES = {f"prefine.training.{stage}" for stage in ("sft", "reward", "dpo", "kto", "ppo")}

# Reading and checking data must be cheap, so these reach torch by no path. Floor 0 belongs to them as a whole.
WITHOUT_TORCH = {f"prefine.data.{name}" for name in ("reading", "convert", "quarantine", "selection")}
TORCH_LOADING = {"torch", "transformers", "peft", "accelerate", "bitsandbytes"}

# Maths imports torch and nothing else, but the language's own means of writing types and shapes.
MATHS_MAY_IMPORT = {"torch", "__future__", "collections", "dataclasses", "math", "typing"}


def module_name(file: Path) -> str:
    parts = file.relative_to(HOUSE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in sorted(HOUSE.rglob("*.py"))}


def room(module: str) -> str:
    parts = module.split(".")
    name = parts[1] if len(parts) > 1 else parts[0]
    return ENTRANCE if name in FLOOR_0 else name


@cache
def imports(module: str) -> frozenset[str]:
    """The modules that a module of prefine names in its import statements, as full names."""
    return frozenset(_imports(ast.parse(MODULES[module].read_text(encoding="utf-8")), module))


def _imports(tree: ast.Module, module: str) -> Iterator[str]:
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    if module == "prefine":  # whose public names are imported when they are asked for, and here for type checkers only
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
    return {name for name in imports(module) if name.split(".")[0] == "prefine"}


def reached(module: str) -> set[str]:
    """All modules of prefine that importing one can lead to, itself and the packages around each included."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen or name not in MODULES:
            continue
        seen.add(name)
        waiting += [*imported_from_prefine(name), name.rpartition(".")[0]]
    return seen


def modules_without_torch() -> list[str]:
    return sorted(name for name in MODULES if name in WITHOUT_TORCH or room(name) == ENTRANCE)


def test_every_module_has_a_floor() -> None:
    homeless = {name for name in MODULES if room(name) not in FLOORS}
    assert not homeless, f"give {homeless} a floor in this file and in design.md"


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_to_the_same_room_or_a_lower_floor(module: str) -> None:
    own = room(module)
    wrong = {
        name
        for name in imported_from_prefine(module)
        if room(name) != own and FLOORS.get(room(name), 99) >= FLOORS.get(own, 0)
    }
    assert not wrong, f"{module} (floor {FLOORS[own]}) imports {sorted(wrong)}"


@pytest.mark.parametrize("module", sorted(STAGES & MODULES.keys()))
def test_stages_do_not_import_each_other(module: str) -> None:
    assert not (reached(module) & STAGES) - {module}


@pytest.mark.parametrize("module", modules_without_torch())
def test_reading_and_checking_reach_no_torch(module: str) -> None:
    paths = {
        f"{name} imports {found}"
        for name in reached(module)
        for found in imports(name)
        if found.split(".")[0] in TORCH_LOADING
    }
    assert not paths


@pytest.mark.parametrize("module", [name for name in MODULES if room(name) == "objectives"])
def test_objectives_import_torch_and_each_other_only(module: str) -> None:
    strange = {
        name
        for name in imports(module)
        if name.split(".")[0] not in MATHS_MAY_IMPORT and not name.startswith("prefine.objectives")
    }
    assert not strange


def test_modules_without_torch_run_without_it() -> None:
    """What the statements say holds when run: third-party libraries bring torch in by no back door."""
    code = f"""
import importlib, sys
for name in {modules_without_torch()!r}:
    importlib.import_module(name)
    found = {TORCH_LOADING!r} & sys.modules.keys()
    assert not found, (name, found)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", [name for name in MODULES if room(name) == "cli"])
def test_command_line_modules_load_only_typer_and_the_standard_library(module: str) -> None:
    """At their top, that is: `prefine --help` loads all of them."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    allowed = {*sys.stdlib_module_names, "typer"}
    light = {"prefine", "prefine.errors", "prefine.terminal"}
    heavy = {
        name
        for name in _imports(tree, module)
        if name.split(".")[0] not in allowed and name not in light and room(name) != "cli"
    }
    assert not heavy


# The only module that exchanges anything with other processes: sharding a model over them has one place to change.
PROCESSES = "prefine.training.processes"
# How accelerate's Accelerator says which process this is, and what it exchanges.
OF_PROCESSES = {
    *("num_processes", "process_index", "is_main_process", "is_local_main_process", "wait_for_everyone"),
    *("main_process_first", "gather_for_metrics", "accelerator.reduce", "accelerator.gather"),
}


@pytest.mark.parametrize("module", [name for name in MODULES if name != PROCESSES])
def test_one_module_talks_to_other_processes(module: str) -> None:
    talking = {name for name in imports(module) if name.split(".")[0] == "accelerate" or "torch.distributed" in name}
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            used = ast.unparse(node)
            if used.endswith(tuple(OF_PROCESSES)) or used.startswith("torch.distributed"):
                talking.add(used)
    assert not talking, f"{module} uses {sorted(talking)}; use {PROCESSES}.Processes"


# The training loop: what CONTRIBUTING.md lists under that heading.
LOOP = {
    f"prefine.training.{name}"
    for name in (
        *("contract", "loop", "optimiser_step", "schedule", "loop_state", "checkpointer", "guards", "rollback"),
        *("heldout_evaluation", "watch", "run_log", "processes"),
    )
}
# What it may import of its own layer besides.
BESIDE_THE_LOOP = {f"prefine.training.{name}" for name in ("display", "launch", "tracking")}


@pytest.mark.parametrize("module", sorted(LOOP))
def test_the_loop_knows_no_stage(module: str) -> None:
    of_training = {name for name in imports(module) if name.startswith("prefine.training")}
    assert not of_training - LOOP - BESIDE_THE_LOOP


def test_modules_of_the_loop_have_no_import_cycle() -> None:
    """Statements under TYPE_CHECKING count, too."""
    waiting = {module: {name for name in imports(module) if name in LOOP} for module in LOOP}
    while free := {module for module, names in waiting.items() if not names}:
        waiting = {module: names - free for module, names in waiting.items() if module not in free}
    assert not waiting, f"in a cycle, or above one: {sorted(waiting)}"


@pytest.mark.parametrize("module", sorted(LOOP))
def test_classes_of_the_loop_are_small(module: str) -> None:
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            methods = [each for each in node.body if isinstance(each, ast.FunctionDef)]
            assert len(methods) <= 15, f"{node.name} has {len(methods)} methods"
            assert (node.end_lineno or 0) - node.lineno < 200, f"{node.name} is too long"
