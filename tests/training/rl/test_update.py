"""What of an update outlives a stop, and the self-check of its first optimiser step; whole updates are in test_ppo."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefine.errors import TrainingError
from prefine.training.loop.contract import State
from prefine.training.loop.processes import Processes
from prefine.training.rl.first_ratio import FirstRatio
from prefine.training.rl.rollouts import Generations, Timings
from prefine.training.rl.update import Progress
from tests.training.rl.test_rollouts import rollouts

figures = st.dictionaries(st.text(max_size=3), st.floats(allow_nan=False, allow_infinity=False), max_size=3)


@settings(deadline=None, max_examples=30)
@given(st.none() | rollouts(), st.lists(figures, max_size=3), figures, st.booleans())
def test_a_checkpoint_holds_all_of_an_updates_progress(
    held: Any, rows: list[dict[str, float]], seconds: dict[str, float], stepped: bool
) -> None:
    """Through JSON, also before the first step, when no ratio has been seen."""
    progress = Progress(held, rows, timings=Timings(seconds))
    if stepped:
        progress.ratios = (0.9, 1.25)
    tensors, as_json = progress.state()
    back = Progress.from_state(State(tensors, json.loads(json.dumps(as_json))))
    assert (back.rows, back.ratios, back.timings) == (progress.rows, progress.ratios, progress.timings)
    if held is None:
        assert back.rollouts is None
    else:
        assert back.rollouts is not None
        assert (back.rollouts.trees, back.rollouts.scored.scores) == (held.trees, held.scored.scores)


@given(rollouts())
@settings(deadline=None, max_examples=30)
def test_answers_by_prompt_join_to_what_they_were(held: Any) -> None:
    samples = len(held.trees[0].answers)
    whole = Generations(list(held.trees), list(held.texts), held.ended.tolist())
    parts = whole.by_prompt(samples)
    assert [part.trees for part in parts] == [[tree] for tree in held.trees]
    assert all(len(part.texts) == len(part.ended) == len(part.lengths) == samples for part in parts)
    assert Generations.joined(parts) == whole


def test_progress_is_not_shared_by_updates() -> None:
    first, second = Progress(), Progress()
    first.rows.append({"loss": 1.0})
    with first.timings.of("train"):
        pass
    assert (second.rows, second.timings.seconds) == ([], {})


def test_the_first_ratio_is_checked_once() -> None:
    check = FirstRatio(Processes.start(cpu=True), enabled=True)
    (row,) = check.check((1.0, 1.0 + 2**-23))
    assert (row["name"], row["passed"]) == ("first ratio", True)
    assert check.check((0.5, 2.0)) == [], "later steps move the policy"


def test_a_first_ratio_that_is_not_1_ends_the_run() -> None:
    with pytest.raises(TrainingError, match=r"first ratio: 0\.5 from 1 at most"):
        FirstRatio(Processes.start(cpu=True), enabled=True).check((0.5, 1.0))


def test_without_self_checks_the_first_step_is_only_noted() -> None:
    check = FirstRatio(Processes.start(cpu=True), enabled=False)
    assert check.check((0.5, 2.0)) == []
    assert check.done
