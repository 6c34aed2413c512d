"""Docs are generated or checked: the recipe page equals the models, shipped recipes parse, links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from prefine.comparisons.gate import gate_of
from prefine.recipe.loading import load_recipe
from prefine.recipe.pipeline import load_pipeline
from prefine.recipe.pipeline_methods import EvaluateRecipe, ExportRecipe
from prefine.recipe.pipeline_stage import PipelineStage
from prefine.recipe.registry import RECIPES as RECIPES_OF_STAGES

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "prefine" / "recipes").glob("*.yaml"))
PIPELINES = sorted((ROOT / "prefine" / "recipes" / "pipelines").glob("*.yaml"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_recipe_page_is_what_the_models_say() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert generate.PAGE.read_text("utf-8") == generate.page(), "run: python docs/generate.py"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid_and_opens_with_its_command_and_hardware(path: Path) -> None:
    lines = path.read_text("utf-8").splitlines()
    command = re.fullmatch(r"# prefine (\w+) (\S+\.yaml)( .*)?", lines[0])
    assert command is not None and command[2] == path.name
    assert any("Tried on" in line for line in lines[1:3])
    load_recipe(path, [], RECIPES_OF_STAGES[command[1]])


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_every_shipped_pipeline_is_valid_and_opens_with_its_command_its_purpose_and_hardware(path: Path) -> None:
    command, purpose, hardware = path.read_text("utf-8").splitlines()[:3]
    assert command == f"# prefine run {path.name}"
    assert re.fullmatch(r"# [A-Z].*\.", purpose)
    assert re.match(r"# (Tried on|Not tried)", hardware)
    assert load_pipeline(path).stages


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_every_shipped_pipeline_goes_from_training_to_an_evaluation_an_export_and_a_page(path: Path) -> None:
    """And needs no file that prefine recipe does not print."""
    stages = load_pipeline(path).stages.values()
    methods = [stage.method for stage in stages]
    assert "export" in methods and methods[-1] == "report"
    evaluations = [stage.recipe for stage in stages if isinstance(stage.recipe, EvaluateRecipe)]
    compared = {name for each in evaluations for name in (each.candidate, each.against)}
    policies = {f"stage:{stage.name}" for stage in stages if stage.trains and stage.method != "reward"}
    if path.stem != "quickstart":  # minutes count there, and PPO's own report compares its rewards
        assert policies <= compared
    exported = [stage.recipe.model for stage in stages if isinstance(stage.recipe, ExportRecipe)]
    assert set(exported) <= compared
    for each in evaluations:
        gate = gate_of(each.gate)
        assert gate is None or not isinstance(each.gate, str)
        assert gate is None or each.regression or gate.regression_set == "optional"  # it could not be passed


def test_some_shipped_pipelines_have_a_gate() -> None:
    gated = [path.stem for path in PIPELINES if any(_is_gated(stage) for stage in load_pipeline(path).stages.values())]
    assert {"support-desk", "hh-rlhf", "summarisation", "7b-24gb", "7b-40gb"} <= set(gated)
    assert "quickstart" not in gated  # make quickstart ends with exit code 0


def _is_gated(stage: PipelineStage) -> bool:
    return isinstance(stage.recipe, EvaluateRecipe) and stage.recipe.gate is not None


def test_the_list_of_pages_names_each() -> None:
    listed = set(re.findall(r"\]\((\w+\.md)\)", (ROOT / "docs" / "README.md").read_text("utf-8")))
    assert listed >= {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8"))
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing
