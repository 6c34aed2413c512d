"""The compared models by name: what they are loaded with, and what must not come into files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefine.errors import ModelError, RecipeError
from prefine.evaluation.comparing import sides
from prefine.evaluation.comparing.evaluate import evaluate
from prefine.evaluation.comparing.sides import NamedSide, as_section, endpoint_name, named_side, starting_side
from tests.evaluation.comparing.test_evaluate import asked as asked
from tests.evaluation.comparing.test_evaluate import models as models
from tests.training import tiny
from tests.training.conftest import data as data
from tests.training.conftest import finished as finished
from tests.training.conftest import model as model
from tests.training.conftest import sft_run as sft_run


@pytest.mark.parametrize("url", ["https://ann:secret@host/v1", "https://host/v1?api_key=secret"])
def test_a_url_with_a_key_is_refused_before_anything_is_written(url: str, asked: Callable[..., Any]) -> None:
    with pytest.raises(RecipeError, match="PREFINE_ENDPOINT_KEY") as refused:
        evaluate(asked(candidate=f"{url}#m"))
    assert "secret" not in str(refused.value)
    assert not asked().out.exists()


def test_an_endpoint_is_one_by_any_way_to_write_it() -> None:
    assert endpoint_name("http://h/v1/#m") == endpoint_name("http://h/v1/chat/completions#m")


def test_a_hub_model_is_fetched_before_its_files_are_hashed(
    asked: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = []

    def fetch(base: str, revision: str | None) -> Path:
        fetched.append((base, revision))
        raise ModelError("no network", "Wait.")

    monkeypatch.setattr(sides, "fetched_whole", fetch)
    monkeypatch.setattr(sides, "is_reward_model", lambda location: False)
    with pytest.raises(ModelError, match="no network"):
        evaluate(asked(baseline="someone/a-model"))
    assert fetched == [("someone/a-model", None)]
    assert not asked().out.exists()


def test_the_model_that_a_run_began_with_is_loaded_as_the_run_loaded_it(
    sft_run: Path, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its revision and its chat template; a template for all models comes first."""
    template = tmp_path / "t.jinja"
    template.write_text(tiny.CHATML)
    section = {"name": str(model), "revision": "v2", "chat_template": str(template), "dtype": "float32"}
    monkeypatch.setattr(NamedSide, "recipe", property(lambda side: {"model": section} if side.run else {}))
    run = named_side("candidate", str(sft_run))
    assert run.own == {"revision": "v2"}
    start = starting_side(run)
    assert (start.name, start.revision) == (str(model), "v2")
    found = start.section(as_section("cpu", "auto", None))
    assert (found.name, found.revision, found.chat_template) == (str(model), "v2", str(template))
    assert start.section(as_section("cpu", "auto", "plain")).chat_template == "plain"
    assert start.settings["template"] == {"chat_template": str(template)}
    json.dumps(start.settings)
