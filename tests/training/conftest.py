"""T and its data once a session, and a cache of its own for every test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefine.evaluation.readiness.assess import Readiness
from prefine.recipe.stage import StageRecipe
from prefine.runs.atomic import write_json, write_text
from prefine.training.run import run_stage as session
from prefine.training.stages import readiness as readiness_module
from tests.training import tiny


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """T's folder."""
    return tiny.save_model(tmp_path_factory.mktemp("T") / "model")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """26 pairs; with the recipe's seed 19 are trained on, so that an epoch's steps are of 4 and of 3."""
    return tiny.write_rows(tmp_path_factory.mktemp("data") / "pairs.jsonl", tiny.pairs(26))


@pytest.fixture(scope="session")
def votes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """26 votes on answers to the prompts of the pairs, so that as many are trained on."""
    return tiny.write_rows(tmp_path_factory.mktemp("votes") / "votes.jsonl", tiny.votes(26))


@pytest.fixture
def make(model: Path, data: Path, votes: Path, tmp_path: Path) -> Callable[..., StageRecipe]:
    """make("dpo", "name", {"training.epochs": 1}): a recipe of T on the data, its run in the test's folder."""

    def made(stage: str, name: str = "run", changes: dict[str, Any] | None = None) -> StageRecipe:
        return tiny.recipe(stage, tmp_path / name, model, votes if stage == "kto" else data, changes)

    return made


@pytest.fixture(scope="session")
def warm(model: Path, data: Path, no_cache_outside: None, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What a run imports on its way is imported here, once, and not in every forked copy."""
    run = tmp_path_factory.mktemp("warm") / "run"
    tiny.train(tiny.recipe("dpo", run, model, data, {"training.max_steps": 1}))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Reference log-probabilities of one test are not read by another."""
    monkeypatch.setenv("PREFINE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def real_report() -> None:
    """For tests that want report.html as users get it."""


def draw_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs end with one line in place of their report."""

    def one_line(run: Path) -> Path:
        write_text(run / "report.html", "drawn elsewhere")
        return run / "report.html"

    def figures_only(readiness: Readiness, folder: Path) -> Path:
        write_json(folder / "readiness.json", readiness.as_json())
        return folder / "readiness.html"

    monkeypatch.setattr(session, "write_report", one_line)
    monkeypatch.setattr(readiness_module, "write_readiness", figures_only)


@pytest.fixture(autouse=True)
def quick_report(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing the report takes as long as training T: most runs here go without."""
    if "real_report" not in request.fixturenames:
        draw_nothing(monkeypatch)


@pytest.fixture(scope="session")
def finished(data: Path, no_cache_outside: None, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """finished("sft", model): the folder of a run of eight steps on a model, for fixtures that several tests share."""

    def trained(stage: str, model: Path) -> Path:
        run = tmp_path_factory.mktemp(stage) / "run"
        with pytest.MonkeyPatch.context() as patched:
            draw_nothing(patched)
            changes = {"training.max_steps": 8, "training.save_every_steps": None}
            tiny.train(tiny.recipe(stage, run, model, data, changes))
        return run

    return trained


@pytest.fixture(scope="session")
def sft_run(model: Path, finished: Callable[..., Path]) -> Path:
    """A finished SFT run on T, for whoever begins on an adapter."""
    return finished("sft", model)


@pytest.fixture(scope="session")
def reward_run(model: Path, finished: Callable[..., Path]) -> Path:
    """A finished reward run on T; its few held-out pairs make its readiness report say caution."""
    return finished("reward", model)
