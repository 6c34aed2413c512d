"""A new pipeline is planned before it is written: what does not fit is changed, and what is not known is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from prefine.advice.chooser import choose
from prefine.advice.memory import context_of, fitted
from prefine.advice.situation import Situation
from prefine.advice.starting import starting_pipeline
from prefine.errors import ModelError
from prefine.planning.model_facts import ModelFacts
from prefine.recipe.pipeline import Pipeline
from prefine.recipe.registry import RECIPES
from tests.planning.test_plan import BIG, GPU
from tests.training import tiny

GB = 10**9
PAIRS = Situation(pairs=4000, longest_tokens={"preferences": 700}, sources={"preferences": ["pairs.jsonl"]})


def pipeline() -> Pipeline:
    return starting_pipeline("desk", "org/7b", choose(PAIRS, RECIPES), PAIRS, []).pipeline


@pytest.fixture
def big(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ModelFacts, "of", staticmethod(lambda name, revision=None: BIG))


@pytest.mark.usefixtures("big")
def test_what_fits_is_not_changed() -> None:
    changes, said = fitted(pipeline(), GPU)
    assert changes == {}
    assert [sentence.split()[0] for sentence in said] == ["sft", "dpo"]
    assert said[0].endswith("of the 80.00 GB.")


@pytest.mark.usefixtures("big")
def test_what_does_not_fit_gets_the_cheapest_change() -> None:
    changes, said = fitted(pipeline(), replace(GPU, memory_bytes=24 * GB))
    assert set(changes) == {"sft", "dpo"}
    choice = choose(PAIRS, RECIPES)
    begun = starting_pipeline("desk", "org/7b", choice, PAIRS, said, changes)
    again, _ = fitted(begun.pipeline, replace(GPU, memory_bytes=24 * GB))
    assert again == {}
    for field, value in changes["dpo"].items():
        assert f"{field.rpartition('.')[2]}: {str(value).lower()}" in begun.text


@pytest.mark.usefixtures("big")
def test_memory_that_others_have_taken_does_not_count() -> None:
    changes, said = fitted(pipeline(), replace(GPU, available_bytes=24 * GB))
    assert changes == fitted(pipeline(), replace(GPU, memory_bytes=24 * GB))[0] != {}
    assert "of the 24.00 GB that are free of the 80.00 GB with " in said[0]


@pytest.mark.usefixtures("big")
def test_ppo_and_its_reward_model_are_changed_together() -> None:
    choice = choose(PAIRS, RECIPES, goal="control")
    machine = replace(GPU, memory_bytes=18 * GB)
    changes, said = fitted(starting_pipeline("desk", "org/7b", choice, PAIRS, []).pipeline, machine)
    assert [sentence.split()[0] for sentence in said] == ["sft", "reward", "ppo"]
    assert {stage: made.get("model.quantization") for stage, made in changes.items()}.items() >= {
        ("reward", "nf4"),
        ("ppo", "nf4"),
    }
    assert "with model.quantization=nf4" in said[1] and "does not fit" not in "".join(said)
    assert fitted(starting_pipeline("desk", "org/7b", choice, PAIRS, [], changes).pipeline, machine)[0] == {}


@pytest.mark.usefixtures("big")
def test_no_change_needs_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """In 12 GB a model of 7 billion weights fits with 4 bits alone."""
    small = replace(GPU, memory_bytes=12 * GB)
    assert all(made["model.quantization"] == "nf4" for made in fitted(pipeline(), small)[0].values())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    changes, said = fitted(pipeline(), small)
    assert not [made for made in changes.values() if "model.quantization" in made]
    assert said[0].endswith(
        "it does not fit. Take a smaller model, or run pip install 'prefine[quantization]' and this again, for weights "
        "of 4 bits."
    )


@pytest.mark.usefixtures("big")
def test_what_cannot_fit_is_said() -> None:
    _, said = fitted(pipeline(), replace(GPU, memory_bytes=2 * GB))
    assert "it does not fit. Take a smaller model." in said[0]


def test_a_model_that_is_not_known_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str, revision: str | None = None) -> ModelFacts:
        raise ModelError("There is no such model", "Check the name.")

    monkeypatch.setattr(ModelFacts, "of", staticmethod(unknown))
    assert fitted(pipeline(), GPU) == ({}, ["Memory is not planned: There is no such model. Check the name."])


def test_the_context_is_read_from_the_models_config(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    assert context_of(str(model)) == config["max_position_embeddings"]


@pytest.mark.parametrize("name", ["./none", "org/none", "org/a\0b", ""])
def test_the_context_of_a_model_that_is_not_there_is_not_known(name: str) -> None:
    assert context_of(name) is None
