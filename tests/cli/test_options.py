"""Shared options parse the same wherever a verb takes them."""

from __future__ import annotations

from pathlib import Path

import typer
from typer.testing import CliRunner

from prefine.cli.options import AsJson, Overrides, RecipePath, Resume

one_verb = typer.Typer()


@one_verb.command()
def train(recipe: RecipePath, overrides: Overrides, resume: Resume = False, as_json: AsJson = False) -> None:
    typer.echo(repr((recipe, overrides, resume, as_json)))


def parsed(*arguments: str) -> str:
    return CliRunner().invoke(one_verb, arguments).stdout.strip()


def test_defaults() -> None:
    assert parsed("a.yaml") == repr((Path("a.yaml"), [], False, False))


def test_overrides_repeat_in_order_and_keep_their_text() -> None:
    shown = parsed("a.yaml", "--set", "dpo.beta=0.3", "--resume", "--set", "data.train=a b=c.jsonl", "--json")
    assert shown == repr((Path("a.yaml"), ["dpo.beta=0.3", "data.train=a b=c.jsonl"], True, True))


def test_recipe_is_required() -> None:
    failed = CliRunner().invoke(one_verb, [])
    assert failed.exit_code == 2
    assert "RECIPE" in failed.stderr
