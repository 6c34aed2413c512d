"""Docs are generated or checked: the recipe page equals the models, shipped recipes parse, links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from prefine.recipe.loading import load_recipe
from prefine.recipe.pipeline import load_pipeline
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8"))
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing
