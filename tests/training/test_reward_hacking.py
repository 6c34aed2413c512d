"""A reward that can be hacked: the guards' own limits stop it in a real run, and a judge tells of it."""

from __future__ import annotations

import re
from typing import Any

import pytest

from prefine.recipe.guards import Action
from tests.training.loop.test_rollback import Make, events, figures, train


def vowels(rows: list[dict[str, Any]]) -> list[float]:
    """How many there are: a reward that is easily hacked."""
    return [float(sum(letter in "aeiou" for letter in row["response"])) for row in rows]


def other_letters(rows: list[dict[str, Any]]) -> list[float]:
    """How many characters are not vowels: what the proxy drives out."""
    return [len(row["response"]) - count for row, count in zip(rows, vowels(rows), strict=True)]


HACKED = {
    "lora": None,
    "reward.name": f"{__name__}:vowels",
    "reward.missing_eos": "none",
    "kl.coefficient": 0.0,
    "ppo.max_kl": None,
    "ppo.minibatches": 1,
    "rollout.heldout_prompts": 4,
    "rollout.slots": 16,
    "training.learning_rate": 0.03,
    "training.batch_size": 8,
    "training.max_tokens_per_microbatch": 800,
    "training.epochs": 10,
    "training.max_steps": 12,
    "training.evaluate_every_steps": None,
    "report.samples": 0,
    "training.self_checks": False,
}
GUARDS = ("kl", "entropy", "degenerate", "value_loss", "proxy_gap", "reward_spread", "reward_clipped")
OFF = {f"guards.{name}.action": "off" for name in GUARDS}


def test_a_hacked_reward_is_caught_and_without_guards_it_is_not(make: Make) -> None:
    """The recipe's own guards against a reward for vowels, no pull to the reference and a far too large rate."""
    free, guarded = make("ppo", "free", {**HACKED, **OFF}), make("ppo", "guarded", HACKED)
    train(free)
    said = train(guarded)
    assert events(free) == []
    assert max(figures(free, "kl_k3").values()) > 2.0
    found = events(guarded)
    assert [event["action"] for event in found][:1] == ["roll_back"]
    assert all(event["guard"] == "kl" for event in found)
    number = r"[\d.]+"
    assert all(
        re.fullmatch(
            rf"kl_k3 is {number}, above 0\.200 for 2 steps: the policy has moved far from its reference", event["words"]
        )
        for event in found
    )
    assert all(f"guard kl at step {event['at_step']}: {event['words']}; the run" in said for event in found)
    kept = figures(guarded, "kl_k3")
    # Every step that was kept was at most one beyond the limit on its own: two in a row act.
    assert not any(kept[step] > 0.2 and kept.get(step - 1, 0.0) > 0.2 for step in kept)
    assert max(kept.values()) < 0.5
    assert max(figures(guarded, "degenerate").values()) < 0.3


def test_a_reward_that_rises_while_its_judge_falls_is_told_at_that_evaluation(make: Make) -> None:
    changes = {**HACKED, **OFF, "reward.judge": f"{__name__}:other_letters", "training.evaluate_every_steps": 2}
    made = make("ppo", changes={**changes, "guards.proxy_gap": {"limit": 1.0, "action": "warn"}})
    said = train(made)
    score, judge, gap = (figures(made, name, "heldout") for name in ("score", "judge", "proxy_gap"))
    assert list(score) == [0, 2, 4, 6, 8, 10, 12]
    assert gap == {
        step: pytest.approx(judge[0] - judge[step] if score[step] > score[0] else 0.0) for step in score if step > 0
    }
    first = min(step for step, value in gap.items() if value > 1.0)
    assert first > 2, "an evaluation before was good, or the test shows nothing"
    event = events(made)[0]
    assert (event["guard"], event["action"], event["at_step"]) == ("proxy_gap", "warn", first)
    assert event["words"].endswith("above 1.000: the reward rises, but what it stands for falls")
    assert f"warning at step {first}: {event['words']}" in said


@pytest.mark.parametrize("action", ["stop", "roll_back"])
def test_a_judge_that_falls_can_end_a_run_or_take_it_back(action: Action, make: Make) -> None:
    changes = {**HACKED, **OFF, "reward.judge": f"{__name__}:other_letters", "training.evaluate_every_steps": 2}
    made = make(
        "ppo",
        changes={**changes, "guards.proxy_gap": {"limit": 1.0, "action": action}, "guards.max_rollbacks": 1},
    )
    train(made)
    actions = [event["action"] for event in events(made)]
    assert actions[0] == action
    event = events(made)[0]
    assert event["back_to_step"] <= event["at_step"] - 2, "an evaluation since then was good"
    # What it ends on may lie between two evaluations that were due: that one is told, whatever it is.
    assert all(gap <= 1.0 for step, gap in figures(made, "proxy_gap", "heldout").items() if step % 2 == 0)
    assert "proxy_gap" in event["given_up"][-1]
