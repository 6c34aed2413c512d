"""Whose reward model judges, and its win rate."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefine.comparisons.result import AnswerOf, AnswerRow
from prefine.evaluation.comparing.rewards import optimised_reward, reward_win_rate
from prefine.evaluation.comparing.sides import NamedSide
from tests.training.conftest import data as data
from tests.training.conftest import finished as finished
from tests.training.conftest import model as model
from tests.training.conftest import reward_run as reward_run


def row(candidate: tuple[str, float], baseline: tuple[str, float]) -> AnswerRow:
    sides = [AnswerOf(text=text, tokens=1, ended=True, reward=reward) for text, reward in (candidate, baseline)]
    return AnswerRow(id=candidate[0], prompt=[], candidate=sides[0], baseline=sides[1])


def test_equal_answers_are_a_tie_whatever_rounding_makes_of_their_scores() -> None:
    rows = [row(("a", 1.0 + 2**-8), ("a", 1.0)), row(("b", 2.0), ("c", 1.0))]
    rate, winners = reward_win_rate("r", rows, [0, 1])
    assert (rate.wins, rate.ties, rate.losses) == (1, 1, 0)
    assert winners == {0: "tie", 1: "candidate"}


def test_the_optimised_reward_is_known_by_any_name(reward_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = {"reward": {"name": str(reward_run)}}
    monkeypatch.setattr(NamedSide, "recipe", property(lambda side: recipe))
    side = NamedSide("candidate", "runs/ppo", None, None)
    monkeypatch.chdir(reward_run.parent)
    assert optimised_reward(f"./{reward_run.name}", side)
    recipe["reward"]["name"] = "/gone"
    assert not optimised_reward(str(reward_run), side)
