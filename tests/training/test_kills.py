"""kill -9 at any moment: what is resumed ends with the very weights and metrics of a run that was left alone.

Each test forks copies of this process, which has everything imported, and kills them.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefine.data.prepare import Preparation
from prefine.recipe.stage import StageRecipe
from prefine.training.loop.optimiser_step import OptimiserStep
from prefine.training.rl import heldout as heldout_answers
from prefine.training.rl import update
from prefine.training.rl.heldout import HeldoutAnswers
from prefine.training.rl.rollout_log import RolloutLog
from prefine.training.run import report_samples as samples
from prefine.training.run import run_stage as session
from prefine.training.stages import reference
from tests.training import tiny

pytestmark = pytest.mark.usefixtures("warm")

Make = Callable[..., StageRecipe]
KILLED = -signal.SIGKILL


def begun(made: StageRecipe) -> bool:
    """Whether there is something to resume, as a person who types --resume after a crash sees it."""
    return (Path(made.run) / ".lock").exists()


def attempt(made: StageRecipe, cache: Path) -> None:
    os.environ["PREFINE_CACHE"] = str(cache)
    tiny.train(made, resume=begun(made))


def nothing_is_left_behind(run: Path) -> bool:
    return not any(run.rglob("*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "dpo", "reward"])
def test_killed_at_random_moments(stage: str, make: Make, tmp_path: Path) -> None:
    """A checkpoint every step, dropout on; a run that ends before all kills is followed by another."""
    killed_at_random_moments(stage, {"training.epochs": 4, "training.evaluate_every_steps": 7}, 16, make, tmp_path)


# All that one update hands to the next: running scales, a coefficient that is steered, kept answers.
OF_PPO = {**tiny.UNGUARDED, "training.evaluate_every_steps": 3, "training.sample_every_steps": 1}
OF_PPO |= {"reward.scale": "running", "kl.controller": "adaptive", "kl.horizon": 8, "rollout.heldout_prompts": 3}


@pytest.mark.slow
def test_ppo_killed_at_random_moments(make: Make, tmp_path: Path) -> None:
    killed_at_random_moments("ppo", {**OF_PPO, "training.max_steps": 7}, 16, make, tmp_path)


def test_ppo_killed_at_a_few_random_moments(make: Make, tmp_path: Path) -> None:
    killed_at_random_moments("ppo", {**OF_PPO, "training.max_steps": 3}, 4, make, tmp_path)


def killed_at_random_moments(stage: str, changes: dict[str, Any], attempts: int, make: Make, tmp_path: Path) -> None:
    """Run after run, each begun again until it ends, until as many attempts were made; most of them end by a kill."""
    whole, before = make(stage, "whole", changes), cpu_of_children()
    assert tiny.forked(lambda: attempt(whole, tmp_path / "whole-cache")) == 0
    longest = 0.8 * (cpu_of_children() - before)
    draw = random.Random(f"{stage} 0")
    # One moment in each of equally many parts of a run, in any order: no part is left out by chance.
    moments = [longest * (place + draw.random()) / attempts for place in range(attempts)]
    draw.shuffle(moments)
    kills, runs = 0, 1
    for moment in [*moments, None]:
        made, cache = make(stage, f"killed-{runs}", changes), tmp_path / f"cache-{runs}"

        def going_on() -> None:
            attempt(made, cache)  # noqa: B023

        if moment is not None and tiny.killed_after(moment, going_on):
            kills += 1
            continue
        assert moment is not None or tiny.forked(going_on) == 0
        assert not tiny.differences(Path(whole.run), Path(made.run)), f"after {kills} kills"
        assert nothing_is_left_behind(Path(made.run))
        runs += 1
    assert kills >= attempts // 2


def cpu_of_children() -> float:
    """Seconds that ended children of this process have computed."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["dpo", "ppo"])
def test_killed_before_each_write_in_turn(stage: str, make: Make, tmp_path: Path) -> None:
    """Every file and folder that a run puts in its place, from the prepared rows to the report."""
    changes = {"training.max_steps": 2, "training.evaluate_every_steps": 1, "training.keep_checkpoints": 1}
    changes = OF_PPO | changes if stage == "ppo" else changes
    whole = make(stage, "whole", changes)
    names = tmp_path / "names"

    def listing() -> None:
        counted_writes(lambda number, name: names.open("a").write(name + "\n"))
        attempt(whole, tmp_path / "cache")

    assert tiny.forked(listing) == 0
    written = names.read_text().split()
    assert {"prepared.json", "train.arrow", "samples.jsonl", "model", "evaluation.json", "report.html"} <= set(written)
    assert stage == "dpo" or {"heldout-before.json", "rollouts.jsonl"} <= set(written)
    for last in range(len(written)):
        made, cache = make(stage, f"run-{last}", changes), tmp_path / f"cache-{last}"

        def dying() -> None:
            counted_writes(lambda number, name: number < last or os.kill(os.getpid(), signal.SIGKILL))  # noqa: B023
            attempt(made, cache)  # noqa: B023

        assert tiny.forked(dying) == KILLED
        assert tiny.forked(lambda: attempt(made, cache)) == 0  # noqa: B023
        assert not tiny.differences(Path(whole.run), Path(made.run)), f"killed before {written[last]} was there"
        assert tiny.manifest(Path(made.run))["status"] == "finished"
        assert (Path(made.run) / "report.html").exists()
        assert nothing_is_left_behind(Path(made.run))
        shutil.rmtree(made.run)


def counted_writes(seen: Callable[[int, str], Any]) -> None:
    """Call `seen` with a running number and a name before anything is put in its place. In forked processes only."""
    real, count = Path.replace, iter(range(1000))

    def replace(path: Path, target: Path) -> Path:
        seen(next(count), Path(target).name)
        return real(path, target)

    Path.replace = replace  # type: ignore[method-assign, assignment]


MOMENTS: dict[str, tuple[Any, str, int]] = {
    "while rows are prepared": (Preparation, "_add", 9),
    "during the reference pass": (reference, "per_sequence", 3),
    "while the samples before are written": (samples, "write_answers", 1),
    "between the last step and the result": (session, "_write_results", 1),
    "while the result is saved": (session, "saved_weights", 1),
    "while the report is written": (session, "write_report", 1),
}


def make_deadly(place: Any, name: str, calls: int) -> None:
    """From now on this process is killed at the beginning of that call of a function."""
    real, count = getattr(place, name), iter(range(calls - 1, -1, -1))

    def deadly(*args: Any, **kwargs: Any) -> Any:
        if next(count) == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    setattr(place, name, deadly)


@pytest.fixture(scope="module")
def whole_dpo(model: Path, warm: None, tmp_path_factory: pytest.TempPathFactory) -> StageRecipe:
    """The recipe of a run that was left alone. One of its rows is refused."""
    folder = tmp_path_factory.mktemp("whole")
    rows: list[dict[str, Any]] = [*tiny.pairs(13), {"prompt": "no answers"}, *tiny.pairs(26)[13:]]
    data = tiny.write_rows(folder / "rows.jsonl", rows)
    whole = tiny.recipe("dpo", folder / "whole", model, data, {"training.max_steps": 3})
    assert tiny.forked(lambda: attempt(whole, folder / "cache")) == 0
    return whole


def elsewhere(whole: StageRecipe, run: Path) -> StageRecipe:
    """The same recipe for another run."""
    return whole.model_copy(update={"run": str(run)})


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_in_the_middle_of_a_part(moment: str, whole_dpo: StageRecipe, tmp_path: Path) -> None:
    """And again at the same place of the resumed run. Rows that are refused are listed once, whatever happens."""
    whole, made = whole_dpo, elsewhere(whole_dpo, tmp_path / "killed")

    def dying() -> None:
        make_deadly(*MOMENTS[moment])
        attempt(made, tmp_path / "cache")

    assert [tiny.forked(dying), tiny.forked(dying)] == [KILLED, KILLED]
    assert tiny.forked(lambda: attempt(made, tmp_path / "cache")) == 0
    assert not tiny.differences(Path(whole.run), Path(made.run))
    assert (Path(made.run) / "quarantine.jsonl").read_text() == (Path(whole.run) / "quarantine.jsonl").read_text()
    assert len((Path(made.run) / "quarantine.jsonl").read_text().splitlines()) == 1
    assert nothing_is_left_behind(Path(made.run))


OF_AN_UPDATE: dict[str, tuple[Any, str, int]] = {
    "while answers are generated": (update, "generate_answers", 2),
    "before they are measured": (update, "measure", 2),
    "between two optimiser steps": (OptimiserStep, "__call__", 6),
    "before some are kept": (RolloutLog, "record", 2),
    "while held-out prompts are answered": (heldout_answers, "generate_answers", 2),
    "while the result is judged": (HeldoutAnswers, "finish", 1),
}


@pytest.fixture(scope="module")
def whole_ppo(model: Path, data: Path, warm: None, tmp_path_factory: pytest.TempPathFactory) -> StageRecipe:
    """The recipe of a run that was left alone."""
    folder = tmp_path_factory.mktemp("whole")
    changes = {**OF_PPO, "training.max_steps": 2, "ppo.max_kl": None, "training.evaluate_every_steps": 1}
    whole = tiny.recipe("ppo", folder / "whole", model, data, changes)
    assert tiny.forked(lambda: attempt(whole, folder / "cache")) == 0
    return whole


@pytest.mark.parametrize("moment", OF_AN_UPDATE)
def test_ppo_killed_in_the_middle_of_a_part(moment: str, whole_ppo: StageRecipe, tmp_path: Path) -> None:
    """And again at the same place of the resumed run, if it comes there."""
    whole, made = whole_ppo, elsewhere(whole_ppo, tmp_path / "killed")

    def dying() -> None:
        make_deadly(*OF_AN_UPDATE[moment])
        attempt(made, tmp_path / "cache")

    assert tiny.forked(dying) == KILLED
    assert tiny.forked(dying) in (KILLED, 0)
    if tiny.manifest(Path(made.run))["status"] != "finished":
        assert tiny.forked(lambda: attempt(made, tmp_path / "cache")) == 0
    assert not tiny.differences(Path(whole.run), Path(made.run))
    assert nothing_is_left_behind(Path(made.run))
